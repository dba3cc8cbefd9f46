"""The messages that the troubleshooting page explains are messages of the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_blocks import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
FOREIGN = "<!-- foreign -->"
"""Marks a message of another library."""
QUOTED = [
    match[1]
    for line in PAGE.read_text().splitlines()
    if FOREIGN not in line and (match := re.match(r"\| `([^`]+)` \|", line))
]


def templates(file: Path) -> Iterator[str]:
    """The texts in a file's code but its docstrings, with … for the values put into them."""
    tree = ast.parse(file.read_text())
    parts = {id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values}
    parts |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in parts:
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.fixture(scope="module")
def known() -> list[str]:
    files = [
        f
        for folder in ("qra_search", "qra_eval", "backends/qra_backends")
        for f in (ROOT / folder).rglob("*.py")
    ]
    return [text for file in files for text in templates(file)]


def stands(message: str, known: list[str]) -> bool:
    """Whether a quoted message is part of a text of the code; … stands for a value, or for a backtick."""
    wanted = re.compile(re.escape(message).replace("…", "[…`]*"))
    return any(wanted.search(text) for text in known)


@pytest.mark.parametrize("message", QUOTED)
def test_a_quoted_message_stands_in_the_code(message: str, known: list[str]) -> None:
    assert stands(message, known), f"no message of the code reads {message!r}"


def test_a_message_that_was_changed_is_noticed(known: list[str]) -> None:
    assert stands("already holds this run: resume it with", known)
    assert not stands("already holds that run: resume it with", known)
