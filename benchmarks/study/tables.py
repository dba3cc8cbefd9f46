"""Tables and the figure of the study, from its raw lines alone; they stand in `docs/study.md` too.

    python benchmarks/study/tables.py                    # and --task arc_easy and the others: one table of each

Differences are paired: the same test rows and the same seeds on both sides. Intervals are percentiles of 10,000
bootstrap draws of rows and of seeds together; with m comparisons against found plans each is at level 1 - 0.05 / m
(Bonferroni), so that all hold at once with 95%.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from operator import eq
from pathlib import Path

import figure
import numpy as np
import protocol

RESULTS = Path(__file__).parents[1] / "results" / "study"
DOCS = Path(__file__).parents[2] / "docs"
FIGURE = DOCS / "images" / "study.svg"
PAGE = DOCS / "study.md"
DRAWS = 10_000
INITS = ("loftq", "pissa", "eva", "adalora")
"""How the rows of other initialisations end; the figure leaves them out."""
OURS = "qra-module-0 @"
"""How the rows of the search begin that the study is about; other searches are compared with it."""


class Row:
    """A plan of the comparison: summed losses (S, N) of its seeds on the test rows, and their tokens (N,)."""

    def __init__(self, name: str, lines: list[dict]):
        self.name = name
        self.by_seed = {d["seed"]: np.array(d["row_losses"]) for d in lines}
        self.tokens = np.array(lines[0]["row_tokens"])
        self.bytes = lines[0]["memory_bytes"]
        self.limit = self.bytes
        self.losses = {seed: float(x.sum() / self.tokens.sum()) for seed, x in self.by_seed.items()}

    @property
    def loss(self) -> float:
        return float(np.mean(list(self.losses.values())))

    @property
    def budget(self) -> str | None:
        """Where a search found the plan: the budget that it was found for."""
        return self.name.partition(" @ ")[2] or None

    @property
    def ours(self) -> bool:
        return self.name.startswith(OURS)

    @property
    def embeddings(self) -> int:
        """Bits of the token embeddings."""
        return 8 if "-e8 @" in self.name or self.name.endswith("embeddings 8-bit") else 16


def shown(loss: float | None) -> str:
    """A loss, where plans were evaluated at all."""
    return "–" if loss is None else f"{loss:.4f}"


def lines(path: Path) -> list[dict]:
    """The lines of a file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read(path: Path, task: str) -> list[Row]:
    """The rows of a task, cheapest first."""
    grouped = defaultdict(list)
    for data in lines(path):
        if data["task"] == task:
            grouped[data["row"]].append(data)
    return sorted((Row(name, lines) for name, lines in grouped.items()), key=lambda r: (r.bytes, r.loss))


def change(a: Row, b: Row, level: float, seed: int = 0) -> tuple[float, float, float]:
    """Relative change of the loss from b to a, and its interval: (a - b) / b."""
    shared = sorted(set(a.by_seed) & set(b.by_seed))
    first, second = (np.array([r.by_seed[s] for s in shared]) for r in (a, b))
    rng = np.random.default_rng(seed)
    draws = np.empty(DRAWS)
    for k in range(DRAWS):
        seeds = rng.integers(len(shared), size=len(shared))
        rows = rng.integers(first.shape[1], size=first.shape[1])
        draws[k] = first[seeds][:, rows].sum() / second[seeds][:, rows].sum() - 1
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(first.sum() / second.sum() - 1), float(low), float(high)


def percent(x: float) -> str:
    return f"{100 * x:+.1f}%"


def interval(found: tuple[float, float, float]) -> str:
    return f"{percent(found[0])} [{percent(found[1])}, {percent(found[2])}]"


def machines(first: list[Row], second: list[Row]) -> list[str]:
    """The rows that were tuned on two machines, the same seeds on both."""
    table = ["| plan | seeds | one machine | another | change |", "|---|---|---|---|---|"]
    here = {r.name: r for r in first}
    for r in second:
        seeds = sorted(set(r.losses) & set(here[r.name].losses)) if r.name in here else []
        if seeds:
            one, other = (float(np.mean([x.losses[s] for s in seeds])) for x in (here[r.name], r))
            table.append(f"| {r.name} | {len(seeds)} | {one:.4f} | {other:.4f} | {percent(other / one - 1)} |")
    return table


def agreement(first: list[dict], second: list[dict]) -> list[str]:
    """How much of the plans that a search chose on two machines is the same."""
    table = ["| search | budget | linears of the same bits | of the same rank |", "|---|---|---|---|"]
    here = {(d["search"], d["budget"]): protocol.expanded(d) for d in first}
    for d in second:
        one, other = here.get((d["search"], d["budget"])), protocol.expanded(d)
        if one is not None:
            same = [sum(map(eq, *pair)) for pair in ((one.bits, other.bits), (one.ranks, other.ranks))]
            parts = (f"{count} of {len(one.bits)}" for count in same)
            table.append(f"| {d['search']} | {d['budget']} | {' | '.join(parts)} |")
    return table


def fill(page: Path, tables: dict[str, list[str]]) -> None:
    """Put tables into a page, each between `<!-- made: NAME -->` and `<!-- end -->`."""
    text = page.read_text()
    for name, lines in tables.items():
        start, before, rest = text.partition(f"<!-- made: {name} -->\n")
        if before:
            _, end, after = rest.partition("<!-- end -->")
            text = start + before + "\n" + "\n".join(lines) + "\n\n" + end + after
    page.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="gsm8k")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = read(options.results / "final.jsonl", options.task)
    plans = lines(options.results / "plans.jsonl")
    limits = {f"{d['search'].removeprefix(options.task + '-')} @ {d['budget']}": d["limit"] for d in plans}
    uniform = [r for r in rows if r.budget is None and r.embeddings == 16]
    sixteen = min((r for r in uniform if r.name.startswith("16-bit")), key=lambda r: r.loss, default=None)
    plans_table = ["| plan | MiB | test loss, mean of seeds | seeds | each seed |", "|---|---|---|---|---|"]
    for r in rows:
        each = ", ".join(f"{x:.3f}" for _, x in sorted(r.losses.items()))
        name = f"**{r.name}**" if r.ours else r.name
        plans_table.append(f"| {name} | {r.bytes / 2**20:.1f} | {r.loss:.4f} | {len(r.losses)} | {each} |")
    rivals: list[tuple[Row, Row, str]] = []
    searches: list[tuple[Row, Row, str]] = []
    for f in (r for r in rows if r.ours):
        limit = limits.get(f.name, f.bytes)
        fitting = [r for r in uniform if r.bytes <= limit and r is not sixteen]
        for some, label in (
            (fitting, "best uniform plan of no more bytes"),
            ([r for r in fitting if not r.name.startswith("gptq")], "best of those not calibrated"),
        ):
            if some:
                best = min(some, key=lambda r: r.loss)
                rivals.append((f, best, f"{label}: {best.name}, {best.bytes / 2**20:.1f} MiB"))
        for r in uniform:
            if r.name in ("nf4 4-bit r8", "hqq 3-bit r8") and r.bytes > limit:
                rivals.append((f, r, f"{r.name}, {r.bytes / 2**20:.1f} MiB"))
        if sixteen is not None:
            rivals.append((f, sixteen, f"{sixteen.name}, {sixteen.bytes / 2**20:.0f} MiB"))
        searches += [(f, r, r.name.partition(" @ ")[0]) for r in rows if r.budget == f.budget and not r.ours]
    level = 1 - 0.05 / max(len(rivals) + len(searches), 1)
    together = f"Intervals hold together at 95% ({len(rivals) + len(searches)} comparisons)."
    against_table = ["| budget | MiB | against | change of test loss |", "|---|---|---|---|"]
    for a, b, label in rivals:
        against_table.append(f"| {a.budget} | {a.bytes / 2**20:.1f} | {label} | {interval(change(a, b, level))} |")
    others_table = ["| budget | against | change of test loss |", "|---|---|---|"]
    others_table += [f"| {a.budget} | {label} | {interval(change(a, b, level))} |" for a, b, label in searches]
    searches_table = ["| search | budget | limit, MiB | validation loss | evaluations | epochs |"]
    searches_table += ["|---|---|---|---|---|---|"]
    for d in (d for d in plans if d["search"].startswith(f"{options.task}-")):
        searches_table.append(
            f"| {d['search']} | {d['budget']} | {d['limit'] / 2**20:.1f} | {shown(d['loss'])} | {d['spent']:.1f} "
            f"| {d['epoch_share']:.2f} |"
        )
    text = [f"# Test loss on {options.task}", "", *plans_table, "", together, ""]
    text += ["## Plans found by qra against uniform ones", "", *against_table, ""]
    text += ["## Plans found by qra against other searches' plans", "", *others_table, ""]
    text += ["## Searches", "", *searches_table]
    (options.results / f"{options.task}.md").write_text("\n".join(text) + "\n")
    if options.task == "gsm8k":
        second = read(options.results / "second-machine" / "final.jsonl", options.task)
        again = lines(options.results / "second-machine" / "plans.jsonl")
        tables = {"plans": plans_table, "against": [together, "", *against_table], "others": others_table}
        fill(
            PAGE,
            tables
            | {"searches": searches_table, "machines": machines(rows, second), "agreement": agreement(plans, again)},
        )
        plain = [r for r in uniform if not r.name.endswith(INITS)]
        FIGURE.write_text(figure.draw([r for r in rows if r.ours or r.embeddings == 8 or r in plain], sixteen))
    else:
        whole = [f"Intervals hold together at 95% ({len(rivals) + len(searches)} comparisons).", ""]
        whole += ["| budget | test loss | against | change of test loss |", "|---|---|---|---|"]
        for a, b, label in sorted(rivals + searches, key=lambda three: three[0].bytes):
            whole.append(f"| {a.budget} | {a.loss:.4f} | {label} | {interval(change(a, b, level))} |")
        fill(PAGE, {options.task: whole})
    print("\n".join(text))


if __name__ == "__main__":
    main()
