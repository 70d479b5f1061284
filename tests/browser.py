"""Renders pages in headless Chromium, where it is installed (or named by the variable CHROMIUM)."""

import html
import os
import re
import shutil
import subprocess

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_MEASURE = """<script>addEventListener("load", () => {
const page = document.documentElement;
parent.postMessage([page.clientWidth, page.scrollWidth, page.scrollHeight].join(), "*");
});</script>"""


def find():
    """The path of Chromium, or None."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def measure(page, width, folder):
    """(client width, scroll width, height) of a page in a window of that width.

    The page is shown in a frame, because a window of Chromium is not as narrow as a phone.
    """
    copy, frame = folder / "measured.html", folder / "frame.html"
    copy.write_text(page.replace("</body>", f"{_MEASURE}</body>"), encoding="utf-8")
    frame.write_text(
        '<!DOCTYPE html><title></title><script>addEventListener("message", e => '
        "document.title = e.data)</script>"
        f'<iframe src="{html.escape(copy.name)}" style="border:0;width:{width}px;height:900px">'
    )
    printed = _run(folder, "--dump-dom", "--virtual-time-budget=5000", frame.as_uri())
    found = re.search(r"<title>(\d+),(\d+),(\d+)</title>", printed)
    return tuple(map(int, found.groups()))


def screenshot(page, size, folder, *, dark=False):
    """The path of a PNG file of the upper part of a page, size (width, height)."""
    file, picture = folder / "shown.html", folder / f"shown-{'dark' if dark else 'light'}.png"
    file.write_text(page, encoding="utf-8")
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    window = f"--window-size={size[0]},{size[1]}"
    _run(folder, f"--screenshot={picture}", window, "--hide-scrollbars", *scheme, file.as_uri())
    return picture


def _run(folder, *arguments):
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [find(), *options, offline, profile, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout
