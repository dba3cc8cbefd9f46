"""Pages stay short and plain: lengths of pages and of sentences."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docs_blocks import PAGES, ROOT

LINES = {"README.md": 90, "study.md": 160}
WORDS = 31
"""Of a sentence on a page of the documentation."""
README_WORDS = 25
MAX_HEADING_WORDS = 14
_FENCED = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_ITEM = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )")
_END = re.compile(r"(?<=[.!?:;])[*\")]*\s+(?=[\[A-Z`*(\"])")


def sentences(page: Path) -> list[str]:
    """The sentences of a page's paragraphs and lists; tables, headings, code and pictures are left out."""
    text = re.sub(r"<!--.*?-->", "", _FENCED.sub("\n", page.read_text()), flags=re.DOTALL)
    lines = ["" if line.lstrip().startswith(("|", "#", "![")) else line for line in text.splitlines()]
    parts = (" ".join(_LINK.sub(r"\1", part).split()) for part in _ITEM.split("\n".join(lines)))
    return [sentence for part in parts for sentence in _END.split(part) if sentence]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_no_sentence_is_long(page: Path) -> None:
    most = README_WORDS if page.name == "README.md" else WORDS
    long = [(len(s.split()), s) for s in sentences(page) if len(s.split()) > most]
    assert not long, f"{page.relative_to(ROOT)} has sentences of more than {most} words: {long}"


@pytest.mark.parametrize("name", LINES)
def test_pages_that_grow_are_kept_short(name: str) -> None:
    page = next(p for p in PAGES if p.name == name)
    assert len(page.read_text().splitlines()) <= LINES[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_headings_stand_alone(page: Path) -> None:
    lines = ["", *_FENCED.sub("\n", page.read_text()).splitlines(), ""]
    crowded = [
        b
        for a, b, c in zip(lines, lines[1:], lines[2:], strict=False)
        if b.startswith("#") and (a + c).strip()
    ]
    assert not crowded, f"{page.relative_to(ROOT)}: lines touch these headings: {crowded}"
    long = [line for line in lines if line.startswith("#") and len(line.split()) > MAX_HEADING_WORDS]
    assert not long, f"{page.relative_to(ROOT)}: a paragraph runs into these headings: {long}"
