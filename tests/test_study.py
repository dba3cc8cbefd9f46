"""Figures of the study on the docs' pages are what its committed lines give, by pairs and intervals that hold."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from benchmarks.common import read
from benchmarks.study import budgets_table, comparison, intervals, merged, peers, protocol, tables
from benchmarks.study.choices import choice_losses
from qra_eval.models.load import load_model
from qra_eval.tasks.example import Example
from qra_eval.tasks.scoring import score_choices

DOCS = Path(__file__).parents[1] / "docs"
TOKENS = np.array([50, 100, 150, 100])


def line(row, loss, *, seed=0, size=100, extra=(0.0, 0.0, 0.0, 0.0), **more):
    """A final tuning: `loss` nats a token on every row, and what some rows have beyond it."""
    losses = (loss + np.array(extra)) * TOKENS
    return {"task": "gsm8k", "row": row, "seed": seed, "memory_bytes": size, "test_loss": loss,
            "row_losses": losses.tolist(), "row_tokens": TOKENS.tolist(), **more}  # fmt: skip


def shown(figure):
    """Place and colours of every mark of a figure, and all texts: where texts stand depends on matplotlib."""
    svg = "{http://www.w3.org/2000/svg}"
    root = ElementTree.fromstring(figure)
    marks = [(u.get("x"), u.get("y"), u.get("style")) for u in root.iter(f"{svg}use")]
    return marks, [text.text for text in root.iter(f"{svg}text")]


def cells(row):
    return [cell.strip() for cell in row.strip("|").split("|")]


def rows_of_page(page, head):
    """The rows of the page's table whose first line begins so."""
    lines = (DOCS / page).read_text().partition(f"\n{head}")[2].splitlines()[2:]
    return [cells(row) for row in lines[: lines.index("")]]


def test_choices_behind_one_prompt_are_scored_as_each_behind_its_own():
    loaded = load_model("tiny", dtype=torch.float32)
    examples = [
        Example("Question: what is green?\nAnswer:", " grass", (" grass", " the deep sea", " a"), 0),
        Example("Two", " three", (" one", " three"), 1),
        Example("Question: and which of all these is blue?\nAnswer:", " sky", (" a red brick", " sky"), 1),
    ]
    losses, tokens = choice_losses(loaded.model, loaded.tokenizer, examples, batch_size=2)
    wanted = score_choices(loaded.model, loaded.tokenizer, examples).log_likelihoods
    for found, lengths, one_by_one in zip(losses, tokens, wanted, strict=True):
        assert -np.array(found) == pytest.approx(one_by_one[: len(found)], abs=1e-4)
        assert min(lengths) > 0


# -- pages -----------------------------------------------------------------------------------------
def test_the_page_and_the_figure_are_what_the_committed_lines_give(tmp_path, monkeypatch):
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
    assert "found by qra" in shown(before)[1] and len(shown(before)[0]) > 10
    for made in ("gsm8k", "arc_easy", "arc_challenge", "details"):
        assert (results / f"{made}.md").read_text() == (protocol.RESULTS / f"{made}.md").read_text()


def test_the_readmes_picture_is_what_the_committed_lines_give():
    assert shown(budgets_table.draw()) == shown((DOCS / "images" / "budgets.svg").read_text())


@pytest.mark.parametrize(
    ("page", "head", "made", "least"),
    [
        ("study.md", "| plan | MiB | start |", budgets_table.table, 8),
        ("compare.md", "| choice | linears at each width |", peers.table, 7),
    ],
)
def test_every_row_of_a_hand_made_table_is_a_row_of_the_scripts(page, head, made, least):
    name = {budgets_table.table: "budgets", peers.table: "peers"}[made]
    known = [set(cells(row)) for row in made(read(protocol.RESULTS / f"{name}.jsonl"))]
    on_page = rows_of_page(page, head)
    assert len(on_page) >= least
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


# -- what the tables are made of -------------------------------------------------------------------
def test_what_rows_and_seeds_have_in_common_widens_no_interval():
    hard = np.array((3.0, 0.0, 1.0, 0.5))
    some, other = (
        [line("a", x * (1 + 0.1 * seed), seed=seed, extra=x * hard) for seed in range(3)] for x in (0.9, 1.0)
    )
    low, mean, high = intervals.difference(intervals.rows_of(some), intervals.rows_of(other))
    assert (low, mean, high) == pytest.approx((-0.1, -0.1, -0.1))


def test_an_interval_of_equally_good_plans_holds_zero():
    rng = np.random.default_rng(1)
    some, other = ([line("a", 1.0, seed=s, extra=rng.normal(0, 0.1, 4)) for s in range(3)] for _ in range(2))
    low, _, high = intervals.difference(intervals.rows_of(some), intervals.rows_of(other))
    assert low < 0.0 < high


def test_only_seeds_that_both_have_are_compared():
    some = comparison.Row("a", [line("a", 1.0, seed=0), line("a", 9.0, seed=1)])
    other = comparison.Row("b", [line("b", 2.0, seed=0)])
    assert comparison.change(some, other, 0.95) == "-50.0% [-50.0%, -50.0%]"


def test_the_opponent_is_the_best_uniform_plan_of_no_more_bytes(tmp_path):
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
    plan = {"search": "gsm8k-qra-module-0", "budget": "3-bit", "limit": 100, "loss": 1.0, "spent": 45, "epoch_share": 1}
    for name, some in (("final.jsonl", finals), ("plans.jsonl", [plan])):
        (tmp_path / name).write_text("".join(json.dumps(d) + "\n" for d in some))
    c = comparison.Comparison(tmp_path, "gsm8k")
    named = {label or b.name: b.name for _, b, label in c.rivals}
    assert named[comparison.CALIBRATED] == "gptq 3-bit r2"
    assert named[comparison.UNCALIBRATED] == "hqq 3-bit r2"
    assert set(named.values()) == {"gptq 3-bit r2", "hqq 3-bit r2", "16-bit r8"}
    assert [b.name for _, b, _ in c.searches] == ["sensitivity-module-0 @ 3-bit"]
    assert c.comparisons == 4 and c.level == pytest.approx(1 - 0.05 / 4)
    assert "-10.0% [-10.0%, -10.0%]" in "\n".join(c.against_uniform())


def test_what_searches_found_stands_beside_the_sensitivities_of_the_same_budget_and_seeds():
    alike = {"own_rows": True, "scales": True, "embeddings": [4], "size": 3 << 20}
    table = budgets_table.searched_table([
        line("", 1.0, plan="sensitivities 62 MiB", seed=0, **alike),
        line("", 1.0, plan="sensitivities 62 MiB", seed=1, **alike),
        line("", 9.0, plan="sensitivities 62 MiB", seed=0, **alike, prior=6),  # a later one of the same seed
        line("", 1.1, plan="nsga2 62 MiB", seed=1, **alike, choices=7),
        line("", 1.1, plan="nsga2 72 MiB", seed=1, **alike, choices=7),  # nothing stands beside it
        line("", 1.1, plan="nsga2 62 MiB", seed=0, own_rows=True, embeddings=[4]),  # scales were not trained
    ])  # fmt: skip
    assert table[2:] == [
        "| 62 MiB | sensitivities | 3.0 | 4 | 2 | 1.0000 | – |",
        "| 62 MiB | nsga2 | 3.0 | 4 | 1 | 1.1000 | +10.0% [+10.0%, +10.0%] |",
    ]


# -- resumed ---------------------------------------------------------------------------------------
def test_what_is_there_is_not_measured_again_and_a_search_that_handed_over_a_plan_twice_is_known(tmp_path):
    path, asked = tmp_path / "lines.jsonl", []

    def measuring(name):
        return lambda: asked.append(name) or line(name, 1.0)

    jobs = [(name, ({"row": name, "seed": 0}, measuring(name))) for name in ("a", "b", "c")]
    protocol.measure(path, jobs, None, only="a|b")
    protocol.measure(path, jobs, None)
    assert asked == ["a", "b", "c"] and [d["row"] for d in read(path)] == asked
    with pytest.raises(SystemExit) as left:
        protocol.measure(path, [("d", ({"row": "d", "seed": 0}, measuring("d")))], until=0.0)
    assert left.value.code == protocol.LEFT and len(read(path)) == 3
    twice = [line("", 1.2, plan="nsga2 62 MiB", choices=7, own_rows=True)]
    assert protocol.like({"choices": 7, "seed": 0, "init": "default"}, map(budgets_table.whole, twice)) is not None
    assert protocol.like({"choices": 7, "seed": 1}, map(budgets_table.whole, twice)) is None
