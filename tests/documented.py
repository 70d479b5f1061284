"""Finds the commands in the documentation, with the line on which each begins.

A command is a line of a code block, of a docstring or of a shell script, a recipe of the Makefile,
or inline code that begins like one. What stands around it (srun, taskset, loops, pipes,
assignments of variables) is left out.
"""

import ast
import itertools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from scratchdet_jax.tools.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
CODE = ("configs", "benchmarks", "experiments", "scratchdet_jax", "docs", "tests/faults")
OPERATORS = ";|&()<>"
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LOOP = re.compile(r"\bfor (\w+) in ([\w. ]+);")
ASSIGNMENT = re.compile(r'(\w+)="?([^" ]*)"?')
REPLACED = (  # in this order
    (re.compile(r"\[options\]|\$\{\w+:-\}"), ""),
    (re.compile(r"\$\(\(.*\)\)|\$\([^()]*\)|\$\{[^{}]*\}|\$\w+"), "1"),  # known when it runs
    (re.compile(r"(?<=\s)\[|\](?=[\s,]|$)"), ""),  # around what may be left out
    (re.compile(r"\{(\w+)(,\w+)+\}"), r"\1"),  # one of several words
    (re.compile(r"<(\w[\w ]*)>"), "PLACEHOLDER"),
    (re.compile(r"\s\d?>.*"), ""),  # where the output goes
    (re.compile(r"(^|\s)#.*"), ""),
)


class Command(NamedTuple):
    """A documented command.

    Attributes:
        where: FILE:LINE.
        words: the command, without what stands around it.
        complete: whether it can be typed like this; inline code may leave things out.
    """

    where: str
    words: tuple[str, ...]
    complete: bool

    def __str__(self) -> str:
        return f"{self.where}: {' '.join(self.words)}"


def pages() -> Iterator[tuple[str, str]]:
    """Yields (name, text) of the pages in Markdown, and of the cells of text in the notebooks."""
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))):
        yield _name(path), path.read_text(encoding="utf-8")
    for path in sorted(ROOT.glob("docs/*.ipynb")):
        for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
            if cell["cell_type"] == "markdown":
                yield f"{_name(path)}[{number}]", "".join(cell["source"])


def commands() -> list[Command]:
    """Returns every documented command, in the order of the files."""
    found: list[Command] = []
    for name, text in pages():
        found += of_markdown(text, name)
    for path in (path for folder in CODE for path in sorted((ROOT / folder).rglob("*.py"))):
        found += of_docstrings(path.read_text(encoding="utf-8"), _name(path))
    for path in (ROOT / "docs" / "journey.sh", ROOT / ".ci" / "run"):
        found += of_shell(path.read_text(encoding="utf-8"), _name(path))
    return found + of_deploy() + of_makefile()


def of_deploy() -> list[Command]:
    """Returns the commands of the files in deploy/."""
    folder = ROOT / "deploy"
    task = yaml.safe_load((folder / "skypilot.yaml").read_text(encoding="utf-8"))
    job = yaml.safe_load((folder / "jobset.yaml").read_text(encoding="utf-8"))
    pod = job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    started = shlex.join(["python", "train.py", *pod["containers"][0]["args"]])
    usage = re.findall(r'"(python train.py .*?)"', _uncommented(folder / "queued_tpu.sh"))
    texts = {"skypilot.yaml": task["run"], "jobset.yaml": started, "queued_tpu.sh": usage[0]}
    return [c for name, text in texts.items() for c in of_shell(text, f"deploy/{name}")]


def _uncommented(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return re.sub(r"\\\n#", "", re.sub(r"^#", "#", text, flags=re.MULTILINE))


def make_targets() -> list[str]:
    """Returns the targets of the Makefile."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE)


def of_makefile() -> list[Command]:
    """Returns the commands of the targets, as make expands them, and of the comment at the top.

    Every line of a recipe counts: `X predict`, where there is no program X, is a mistake.
    """
    make = [
        "make",
        "--silent",
        "--dry-run",
        "--always-make",
        "VENV=venv",
        f"PYTHON={sys.executable}",
    ]
    done = subprocess.run(
        [*make, *make_targets()], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = {}
    for line in done.stdout.replace("\\\n", " ").splitlines():
        words = _split(line)
        end = next((i for i, w in enumerate(words) if set(w) <= set(OPERATORS)), len(words))
        command = Command("Makefile", tuple(words[:end]), complete=True)
        found.setdefault(command.words, command)
    for number, line in enumerate((ROOT / "Makefile").read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("# make "):
            usage = line[2:].partition("  ")[0]
            found |= {c.words: c for c in _commands(usage, f"Makefile:{number}", complete=True)}
    return list(found.values())


def of_markdown(text: str, name: str, first: int = 1) -> list[Command]:
    """Returns the commands of the blocks of shell code, and of inline code.

    Args:
        text: the page.
        name: of its file.
        first: the number of its first line.
    """
    found = []
    for block in FENCE.finditer(text):
        if block[1] in ("sh", "bash"):
            found += of_shell(block[2], name, first + text[: block.start(2)].count("\n"))
    for line, code in inline_code(text, first):
        found += _commands(code, f"{name}:{line}", complete=False)
    return found


def inline_code(text: str, first: int = 1) -> list[tuple[int, str]]:
    """Returns (line, code) of the inline code of a page."""
    prose = FENCE.sub(lambda block: "\n" * block[0].count("\n"), text)
    return [
        (first + prose[: span.start()].count("\n"), " ".join(span[1].split()))
        for span in INLINE.finditer(prose)
    ]


def of_docstrings(text: str, name: str) -> list[Command]:
    """Returns the commands of a module's docstrings: lines that begin with one, and inline code."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        if docstring := ast.get_docstring(node, clean=False):
            first = node.body[0].lineno
            found += of_shell(docstring, name, first, prose=True)
            found += of_markdown(docstring, name, first)
    return found


def of_shell(text: str, name: str, first: int = 1, prose: bool = False) -> list[Command]:
    """Returns the commands of shell code.

    Args:
        text: the code.
        name: of its file.
        first: the number of its first line.
        prose: whether other lines are text, so that a command has to begin its line.
    """
    found: list[Command] = []
    variables: dict[str, list[str]] = {}
    lines = iter(enumerate(text.splitlines(), first))
    for number, line in lines:
        if prose and not _begins(line.split()):
            continue
        while line.endswith("\\") or (not prose and _open_quote(line)):
            line = line.removesuffix("\\") + next(lines, (0, "'"))[1]
        used = [variable for variable in variables if f"${variable}" in line]
        for values in itertools.product(*(variables[variable] for variable in used)):
            written = line
            for variable, value in zip(used, values, strict=True):
                written = written.replace(f"${variable}", value)
            found += _commands(written, f"{name}:{number}", complete=True)
            if assigned := ASSIGNMENT.fullmatch(written):
                variables[assigned[1]] = _split(assigned[2]) or [""]
        if loop := LOOP.search(line):
            variables[loop[1]] = loop[2].split()
    return found


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _open_quote(line: str) -> bool:
    try:
        shlex.split(line, comments=True)
    except ValueError:
        return True
    return False


def _split(line: str) -> list[str]:
    """The words and operators of a line; none if it is no shell code."""
    for pattern, replacement in REPLACED:
        line = pattern.sub(replacement, line)
    words = shlex.shlex(line, posix=True, punctuation_chars=OPERATORS)
    words.whitespace_split, words.commenters = True, ""
    try:
        return list(words)
    except ValueError:
        return []


def _commands(line: str, where: str, complete: bool) -> Iterator[Command]:
    """Yields the commands of a line; a quoted argument may hold others."""
    complete = complete and "[options]" not in line
    simple: list[list[str]] = [[]]
    for word in _split(line):
        if set(word) <= set(OPERATORS):
            simple.append([])
        else:
            simple[-1].append(word)
    for words in simple:
        for word in words:
            if re.search(r"\b(python|scratchdet) ", word):
                yield from _commands(re.sub(r"^--\w+=\s*", "", word), where, complete)
        starts = range(len(words) if complete and words[:1] != ["cd"] else 1)
        start = next((i for i in starts if _begins(words[i:], complete)), None)
        if start is not None:
            yield Command(where, tuple(w for w in words[start:] if w != "…"), complete)


def _begins(words: list[str], complete: bool = True) -> bool:
    """Whether the words begin like a command of this project; inline code may shorten it."""
    program, following = (*words, "", "")[:2]
    if not complete and following and (program in COMMANDS or program.startswith("benchmarks.")):
        return True
    program = program.rpartition("/")[2]
    if re.fullmatch(r"python(3(\.\d+)?)?", program):
        return following == "-m" or following.endswith(".py")
    if program == "sh":
        return following.endswith(".sh")
    return program in ("scratchdet", "make", "pytest", "pip", "train.py", "eval.py")
