"""The page's style: light and dark, wide and narrow; no script, no external resources."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #f6f5f2; --card: #ffffff; --ink: #1d2126; --soft: #5c6570; --line: #dcdfe3;
  --bar: #4c7db8; --after: #d0652a; --mark: #8a5fb0; --good: #2f8f5b;
  --problem: #b3261e; --warning: #a86400; --note: #3b6ea8;
  --s0: #2f6db3; --s1: #c8571b; --s2: #23834f; --s3: #8a4fb5;
  --s4: #a8791a; --s5: #b8376d; --s6: #1a8a94; --s7: #5f6b33;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1d2126; --ink: #e6e8eb; --soft: #9ba4ae; --line: #353b43;
    --bar: #6d9fd8; --after: #f0955c; --mark: #b995dc; --good: #56bd85;
    --problem: #ff8a80; --warning: #f0b45c; --note: #8ab8ee;
    --s0: #6fa8e8; --s1: #f08c50; --s2: #58c48a; --s3: #bf95e6;
    --s4: #e0b450; --s5: #ee7fa8; --s6: #5fc9d2; --s7: #b3c16f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 1180px; margin: 0 auto; padding: 0 16px 48px; }
header { padding: 28px 0 8px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 12px; }
h3 { font-size: 1rem; margin: 20px 0 8px; }
p { margin: 0 0 10px; overflow-wrap: anywhere; }
.soft, figcaption, caption { color: var(--soft); font-size: .875rem; }
section {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 18px 20px; margin: 16px 0;
}
nav { display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: .875rem; margin-top: 12px; }
a { color: var(--note); }
.facts { display: flex; flex-wrap: wrap; gap: 12px 32px; margin: 14px 0 0; }
.facts div { display: flex; flex-direction: column-reverse; }
.facts dt { color: var(--soft); font-size: .8rem; }
.facts dd { margin: 0; font-size: 1.35rem; font-weight: 600; line-height: 1.2; }
.scroll { overflow-x: auto; margin: 0 -4px 10px; padding: 0 4px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: 4px 10px; text-align: right; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td { white-space: nowrap; }
th.text { text-align: left; }
td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 11em; }
tr.total td { font-weight: 600; }
td.share {
  background: color-mix(in srgb, var(--good) calc(var(--share) * 42%), transparent);
}
td.meter { min-width: 130px; }
td.meter i {
  display: block; height: 10px; border-radius: 3px; background: var(--bar);
  width: calc(var(--share) * 100%); min-width: 1px;
}
td.slip { background: color-mix(in srgb, var(--problem) calc(var(--share) * 55%), transparent); }
td.hit { background: color-mix(in srgb, var(--good) calc(var(--share) * 42%), transparent); }
table.matrix tbody th { text-align: left; }
figure.matrix { max-width: 640px; }
figure.matrix .hit { fill: var(--good); } figure.matrix .slip { fill: var(--problem); }
figure.matrix .frame { fill: none; stroke: var(--line); stroke-width: .08; }
.findings { list-style: none; margin: 0; padding: 0; }
.findings li { border-left: 4px solid; padding: 2px 0 2px 12px; margin: 0 0 14px; }
.findings b { text-transform: uppercase; font-size: .75rem; letter-spacing: .05em; }
.findings p { margin: 0; overflow-wrap: anywhere; }
.problem { border-color: var(--problem) !important; } .problem b { color: var(--problem); }
.warning { border-color: var(--warning) !important; } .warning b { color: var(--warning); }
.note { border-color: var(--note) !important; } .note b { color: var(--note); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(290px, 1fr)); gap: 16px; }
.charts.spaced { margin: 16px 0 12px; }
figure { margin: 0; min-width: 0; }
figure.chart { max-width: 520px; }
code {
  display: inline-block; max-width: 100%; padding: 0 5px; border-radius: 4px; font-size: .85em;
  background: var(--paper); line-break: anywhere;
}
figcaption { margin-top: 4px; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; display: block; }
svg .grid { stroke: var(--line); }
svg .bar { fill: var(--bar); fill-opacity: .8; }
svg .after { fill: none; stroke: var(--after); stroke-width: 2; }
svg .mark { stroke: var(--mark); stroke-dasharray: 4 3; }
svg text { fill: var(--soft); font-size: 13px; font-family: inherit; }
svg text.marked { fill: var(--mark); }
svg polyline { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; }
svg polygon { fill: currentColor; fill-opacity: .16; }
svg circle { fill: currentColor; }
.s0 { color: var(--s0); } .s1 { color: var(--s1); } .s2 { color: var(--s2); }
.s3 { color: var(--s3); } .s4 { color: var(--s4); } .s5 { color: var(--s5); }
.s6 { color: var(--s6); } .s7 { color: var(--s7); }
svg .faint { color: var(--soft); } svg .faint polyline { stroke-width: .8; stroke-opacity: .45; }
.charts.small figure { max-width: 300px; }
.charts.small { grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 0 0 12px; font-size: .9rem; }
.legend span { overflow-wrap: anywhere; }
.legend b { font-weight: 400; color: var(--ink); }
.legend i {
  display: inline-block; width: 18px; height: 4px; margin-right: 6px; vertical-align: middle;
  background: currentColor;
}
details { margin: 8px 0 12px; }
summary { cursor: pointer; color: var(--note); overflow-wrap: anywhere; }
details > *:not(summary) { margin-top: 10px; }
.key { display: inline-block; width: 18px; height: 4px; vertical-align: middle; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 14px; }
.gallery.large { grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); }
.gallery img, .pair img { width: 100%; height: auto; display: block; border-radius: 4px; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 18px; }
.pairs.large { grid-template-columns: repeat(auto-fill, minmax(min(100%, 470px), 1fr)); }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 6px; align-items: start; }
.chips { display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: .875rem; margin: 0 0 12px; }
.chips i { display: inline-block; width: 12px; height: 12px; margin-right: 5px; }
ul.files { margin: 0 0 10px; padding-left: 20px; font-size: .9rem; overflow-wrap: anywhere; }
@media (max-width: 480px) {
  main { padding: 0 8px 32px; } section { padding: 14px 12px; } header { padding: 18px 4px 4px; }
  th, td { padding: 4px 7px; font-size: .82rem; }
  .gallery, .gallery.large, .pairs, .pairs.large { grid-template-columns: 1fr; }
}
"""
