"""Figures of the study on the docs' pages are what its committed lines give."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from benchmarks.common import read
from benchmarks.study import answers_table, budgets_table, merged, peers, protocol, tables

DOCS = Path(__file__).parents[1] / "docs"


def shown(figure):
    """Place and colours of every mark of a figure, and all texts: where texts stand depends on matplotlib."""
    svg = "{http://www.w3.org/2000/svg}"
    root = ElementTree.fromstring(figure)
    marks = [(u.get("x"), u.get("y"), u.get("style")) for u in root.iter(f"{svg}use")]
    return marks, [text.text for text in root.iter(f"{svg}text")]


def cells(row):
    return [cell.strip() for cell in row.strip("|").split("|")]


def rows_of_page(page, head, *, second=False):
    """The rows of the page's table whose first line begins so, or of the second such table."""
    lines = (DOCS / page).read_text().split(f"\n{head}")[1 + second].splitlines()[2:]
    return [cells(row) for row in lines[: lines.index("")]]


def test_the_page_and_the_readmes_picture_are_what_the_committed_lines_give(tmp_path, monkeypatch):
    results, page, figure = tmp_path / "study", tmp_path / "study.md", tmp_path / "study.svg"
    shutil.copytree(protocol.RESULTS, results)
    committed = tables.PAGE.read_text()
    page.write_text(re.sub(r"(<!-- made: \w+ -->\n).*?(<!-- end -->)", r"\1\2", committed, flags=re.DOTALL))
    before = tables.FIGURE.read_text()
    monkeypatch.setattr(tables, "PAGE", page)
    monkeypatch.setattr(tables, "FIGURE", figure)
    monkeypatch.setattr(sys, "argv", ["tables", "--results", str(results)])
    tables.main()
    assert (page.read_text(), shown(figure.read_text())) == (committed, shown(before))
    assert "plans of qra" in shown(before)[1] and len(shown(before)[0]) > 10
    for made in ("gsm8k", "arc_easy", "arc_challenge", "details"):
        assert (results / f"{made}.md").read_text() == (protocol.RESULTS / f"{made}.md").read_text()


def test_the_picture_of_bytes_for_a_quality_is_what_the_committed_lines_give():
    assert shown(budgets_table.draw()) == shown((DOCS / "images" / "budgets.svg").read_text())


def test_a_row_with_one_table_has_the_bytes_of_the_narrower_table_less():
    """By hand, for 151,936 rows of 1,536: 16 bits, and 4 bits with 8 more a column and a 16-bit scale a row."""
    lines = [d for d in read(protocol.RESULTS / answers_table.FILE) if d["model"] == "qwen-1.5b"]
    saved = {d["row"]: d["memory_bytes"] - answers_table.with_one_table(d, (151936, 1536)) for d in lines}
    assert saved["QLoRA"] == saved["untuned"] == 466_747_392
    for row in ("uniform 4-bit", "plan within 75%"):  # the other table of the second has 8 bits
        assert saved[row] == 151936 * 1536 // 2 + 1536 + 2 * 151936


def test_every_row_of_the_hand_made_table_is_a_row_of_the_script():
    known = [set(cells(row)) for row in peers.table(read(protocol.RESULTS / "peers.jsonl"))]
    head = "| choice | linears at each width |"
    on_page = rows_of_page("compare.md", head) + rows_of_page("compare.md", head, second=True)
    assert len(on_page) >= 11
    for row in on_page:
        figures = {cell for cell in row if re.match(r"[\d+-]", cell)}
        assert len(figures) >= 4 and any(figures <= cells for cells in known), row


def test_what_merging_costs_is_on_the_page_as_it_was_measured():
    known = {(bits, way): [loss, beside] for bits, way, _, _, loss, beside in map(
        cells, merged.table(read(protocol.RESULTS / "merged.jsonl"))[2:]) if bits != "16"}  # fmt: skip
    for way, *found in rows_of_page("export.md", "| way | 2 bits | 3 bits | 4 bits |"):
        name = way if (("2", way) in known) else ", ".join(np.array(way.split(", "))[[0, 2, 1]])
        for bits, cell in zip("234", found, strict=True):
            assert cell.split(", ", 1) == [c for c in known.pop((bits, name)) if c != "–"]
    assert not known
