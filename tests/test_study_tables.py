"""The study's tables say what its raw lines say: pairing, the right opponent, intervals that hold."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

STUDY = Path(__file__).parents[1] / "benchmarks" / "study"
TOKENS = np.array([50, 100, 150, 100])


@pytest.fixture
def study(monkeypatch):
    """The modules of `benchmarks/study`, which are scripts beside each other."""
    monkeypatch.syspath_prepend(str(STUDY))
    names = ("protocol", "comparison", "figure", "tables")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    import comparison
    import tables

    yield comparison, tables
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)


def line(row, loss, *, seed=0, size=100, extra=(0.0, 0.0, 0.0, 0.0)):
    """A final tuning: `loss` nats a token on every row, and what some rows have beyond it."""
    losses = (loss + np.array(extra)) * TOKENS
    return {"task": "gsm8k", "row": row, "seed": seed, "memory_bytes": size, "row_losses": losses.tolist(),
            "row_tokens": TOKENS.tolist()}  # fmt: skip


def plan(search, budget, limit):
    return {"search": f"gsm8k-{search}", "budget": budget, "limit": limit, "loss": 1.0, "spent": 45, "epoch_share": 0.5}


def write(folder, finals, plans=()):
    for name, some in (("final.jsonl", finals), ("plans.jsonl", plans)):
        (folder / name).write_text("".join(json.dumps(d) + "\n" for d in some))
    return folder


def drawn(figure):
    """Place, colours and tooltip of every mark of a figure, and all texts: where texts stand depends on matplotlib."""
    svg = "{http://www.w3.org/2000/svg}"
    root = ElementTree.parse(figure).getroot()
    marks = [(u.get("x"), u.get("y"), u.get("style"), u.findtext(f"{svg}title")) for u in root.iter(f"{svg}use")]
    return [mark for mark in marks if mark[-1]], [text.text for text in root.iter(f"{svg}text")]


def test_a_loss_is_that_of_all_tokens_and_not_the_mean_of_rows(study):
    comparison, _ = study
    row = comparison.Row("gptq 3-bit r8", [line("gptq 3-bit r8", 1.0, extra=(0.0, 0.0, 0.4, 0.0))])
    assert row.loss == pytest.approx(1.0 + 0.4 * 150 / 400)


def test_what_rows_and_seeds_have_in_common_widens_no_interval(study):
    comparison, _ = study
    hard = (3.0, 0.0, 1.0, 0.5)
    some, other = (
        comparison.Row(
            name, [line(name, x * (1 + 0.1 * seed), seed=seed, extra=x * np.array(hard)) for seed in range(3)]
        )
        for name, x in (("a", 0.9), ("b", 1.0))
    )
    found, low, high = comparison.change(some, other, 0.95)
    assert (found, low, high) == pytest.approx((-0.1, -0.1, -0.1))


def test_only_seeds_that_both_have_are_compared(study):
    comparison, _ = study
    some = comparison.Row("a", [line("a", 1.0, seed=0), line("a", 9.0, seed=1)])
    other = comparison.Row("b", [line("b", 2.0, seed=0)])
    assert comparison.change(some, other, 0.95) == pytest.approx((-0.5, -0.5, -0.5))


def test_an_interval_of_equally_good_plans_holds_zero(study):
    comparison, _ = study
    rng = np.random.default_rng(1)
    some, other = (
        comparison.Row(n, [line(n, 1.0, seed=s, extra=rng.normal(0, 0.1, 4)) for s in range(3)]) for n in "ab"
    )
    _, low, high = comparison.change(some, other, 0.95)
    assert low < 0.0 < high


def test_the_opponent_is_the_best_uniform_plan_of_no_more_bytes(study, tmp_path):
    comparison, _ = study
    finals = [
        line("qra-module-0 @ 3-bit", 0.9),
        line("gptq 3-bit r8", 1.1),
        line("gptq 3-bit r2", 1.0, size=90),
        line("hqq 3-bit r2", 1.2, size=95),
        line("hqq 4-bit r2", 0.5, size=101),  # too large
        line("gptq 3-bit r8 at 0.004", 0.4),  # tuned otherwise
        line("gptq 3-bit r8, embeddings 8-bit", 0.3, size=60),  # of another series
        line("sensitivity-module-0 @ 3-bit", 0.6),  # no uniform plan
        line("16-bit r8", 0.2, size=300),
    ]
    c = comparison.Comparison(write(tmp_path, finals, [plan("qra-module-0", "3-bit", 100)]), "gsm8k")
    named = {label or b.name: b.name for _, b, label in c.rivals}
    assert named[comparison.CALIBRATED] == "gptq 3-bit r2"
    assert named[comparison.UNCALIBRATED] == "hqq 3-bit r2"
    assert set(named.values()) == {"gptq 3-bit r2", "hqq 3-bit r2", "16-bit r8"}
    assert [b.name for _, b, _ in c.searches] == ["sensitivity-module-0 @ 3-bit"]
    assert c.comparisons == 4 and c.level == pytest.approx(1 - 0.05 / 4)
    assert "-10.0% [-10.0%, -10.0%]" in "\n".join(c.against_uniform())


def test_searches_under_other_rules_are_compared_among_themselves(study, tmp_path):
    comparison, _ = study
    finals = [line(f"{name} @ 3-bit", 1.0) for name in ("qra-module-0", "qra-module-0-e8", "sensitivity-module-0-e8")]
    write(tmp_path, finals)
    usual, eight = (comparison.Comparison(tmp_path, "gsm8k", series) for series in ("", "-e8"))
    assert not usual.searches
    assert [b.search for _, b, _ in eight.searches] == ["sensitivity-module-0-e8"]


def test_longer_tunings_stand_beside_the_usual_ones_of_the_same_seeds(study, tmp_path):
    _, tables = study
    names = ("gptq 3-bit r8", "qra-module-0 @ 3-bit")
    write(tmp_path, [line(name, 1.5 + seed, seed=seed) for name in names for seed in (0, 1)])
    rows = [line(names[0], 1.0), line(names[1], 0.8)]
    (tmp_path / "final-108.jsonl").write_text("".join(json.dumps(d) + "\n" for d in rows))
    table = tables.longer(tmp_path, "gsm8k", 108, names[0])
    assert table[2:] == [
        "| qra-module-0 @ 3-bit | 0.0 | 1.5000 | 0.8000 | -20.0% [-20.0%, -20.0%] |",
        "| gptq 3-bit r8 | 0.0 | 1.5000 | 1.0000 | – |",
    ]
    assert tables.longer(tmp_path, "gsm8k", 12, names[0]) == []


def test_a_page_is_filled_between_its_marks_and_nowhere_else(study, tmp_path):
    _, tables = study
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- made: one -->\nold\n<!-- end -->\nafter\n<!-- made: two -->\nkept\n<!-- end -->\n")
    tables.fill(page, {"one": ["new"], "three": ["nowhere"]})
    assert page.read_text() == (
        "before\n<!-- made: one -->\n\nnew\n\n<!-- end -->\nafter\n<!-- made: two -->\nkept\n<!-- end -->\n"
    )


def test_the_page_and_the_figure_are_what_the_committed_lines_give(study, tmp_path, monkeypatch, capsys):
    _, tables = study
    root = STUDY.parents[1]
    committed, results = root / "benchmarks" / "results" / "study", tmp_path / "study"
    shutil.copytree(committed, results)
    page = tmp_path / "study.md"
    expected = tables.PAGE.read_text(), drawn(tables.FIGURE)
    page.write_text(re.sub(r"(<!-- made: \w+ -->\n).*?(<!-- end -->)", r"\1\2", expected[0], flags=re.DOTALL))
    monkeypatch.setattr(tables, "PAGE", page)
    monkeypatch.setattr(tables, "FIGURE", tmp_path / "study.svg")
    monkeypatch.setattr(sys, "argv", ["tables.py", "--results", str(results)])
    tables.main()
    assert capsys.readouterr().out.startswith("# Test loss on gsm8k")
    assert (page.read_text(), drawn(tables.FIGURE)) == expected
    marks, texts = expected[1]
    assert len(marks) > 10 and "found by qra" in texts
    for made in ("gsm8k", "arc_easy", "arc_challenge", "details"):
        assert (results / f"{made}.md").read_text() == (committed / f"{made}.md").read_text()
