"""The fenced blocks of the documentation, and how each says that it is tested.

A block is preceded by a line `<!-- test: HOW -->`, or its page holds `<!-- test all: HOW -->`. HOW is one of

    run         python is executed, the `qra` commands of sh are run, on a tiny model and in a folder of tiny runs
    parse       every `qra` command parses with values that a config takes; python compiles and its imports from qra
                exist; yaml is a valid config; jsonl is data that a task reads; toml and json are read
    none, WHY   nothing can be checked: what a command printed, a diagram, another tool's language
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HOWS = ("run", "parse", "none")

_FENCE = re.compile(r"^(?P<indent>[ ]*)(?P<ticks>`{3,}|~{3,})[ ]*(?P<language>[\w+-]*)(?P<rest>[^`\n]*)$")
_MARK = re.compile(r"^\s*<!-- test: (?P<how>\w+)(?:, (?P<why>.+?))? -->\s*$")
_DEFAULT = re.compile(r"^<!-- test all: (?P<how>\w+)(?:, (?P<why>.+?))? -->\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block; `line` is that of its first line of code, counted from 1."""

    page: Path
    line: int
    language: str
    code: str
    how: str | None
    why: str | None

    @property
    def place(self) -> str:
        """Page and line, as an error names them."""
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"

    @property
    def fault(self) -> str | None:
        """What is wrong with the block's mark; None where nothing is."""
        if self.how is None:
            return "has no mark: put <!-- test: run -->, <!-- test: parse --> or <!-- test: none, WHY --> before it"
        if self.how not in HOWS:
            return f"must be marked with one of {', '.join(HOWS)}, got {self.how!r}"
        if (self.how == "none") != (self.why is not None):
            return "says why it is not tested (none, WHY), or nothing more than how it is"
        return None


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order.

    Raises:
        ValueError: a fence is not closed.
    """
    text = page.read_text()
    default = _DEFAULT.search(text)
    blocks: list[Block] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        fence = _FENCE.match(lines[number])
        if fence is None:
            number += 1
            continue
        mark = (_MARK.match(lines[number - 1]) if number else None) or default
        end = number + 1
        while end < len(lines) and lines[end].strip() != fence["ticks"]:
            end += 1
        if end == len(lines):
            raise ValueError(f"{page}:{number + 1}: the fence is not closed")
        code = "\n".join(line.removeprefix(fence["indent"]) for line in lines[number + 1 : end]) + "\n"
        how, why = (mark["how"], mark["why"]) if mark else (None, None)
        blocks.append(Block(page, number + 2, fence["language"], code, how, why))
        number = end + 1
    return blocks


def cells_of(notebook: Path) -> list[Block]:
    """The code cells of a notebook, numbered as a page's lines are: all are run."""
    cells = json.loads(notebook.read_text())["cells"]
    return [
        Block(notebook, number, "python", "".join(cell["source"]) + "\n", "run", None)
        for number, cell in enumerate(cells, start=1)
        if cell["cell_type"] == "code"
    ]


ALL = [block for page in PAGES for block in blocks_of(page)]


def commands(code: str) -> list[str]:
    """The commands of a sh block, one a line: continued lines are joined, blank ones and comments left out."""
    lines = (line.strip() for line in code.replace("\\\n", " ").splitlines())
    return [line for line in lines if line and not line.startswith("#")]
