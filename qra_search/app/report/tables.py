"""The tables of runs as texts, which the terminal prints and the page has as HTML; how results show themselves."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from qra_search.allocate.solve import (
    Allocation,
    build_additive_table,
    compute_table_losses,
    list_least_rank_uniform_plans,
    predict_uniform,
    solve,
    solve_front,
)
from qra_search.app.baselines import can_shuffle, shuffle_plan
from qra_search.app.compare import Comparison, classify_record, compare_losses
from qra_search.app.intervals import compute_score_interval
from qra_search.app.report.finding import make_comparison_headline, summarize_comparison, summarize_run
from qra_search.app.report.formatting import (
    format_change_cell,
    format_evaluations,
    format_loss,
    format_metric,
    format_metric_name,
    format_plan,
    format_role,
    format_time,
)
from qra_search.schemas import Plan, TuningRecord, format_level_label
from qra_search.space.memory import format_bytes
from qra_search.space.space import SearchSpace
from qra_search.study.result import EvaluatedPlan, SearchResult

SHORT_CELL = 12
"""Cells of at most so many characters are not broken into lines in a terminal."""
TEXT_COLUMNS = 120
"""Columns of what does not go to a terminal."""
CHANCE_NOTE = "Chance: the interval holds zero."
FAILURES_SHOWN = 50
EQUAL_RANKS_SHARE = 0.9
"""Share of linears of one rank above which ranks are not shown layer by layer."""


@dataclass(frozen=True)
class TextTable:
    """A table whose cells are texts.

    Attributes:
        heads: of the columns; the first is aligned left, and the others right but for those in `left`.
        marked: rows that stand out, such as that of what is to be deployed.
        notes: sentences that explain what is in the cells.
    """

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Collection[str] = ()
    marked: Collection[int] = ()
    notes: Sequence[str] = ()

    def __rich__(self) -> Group:
        table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
        for i, name in enumerate(self.heads):
            short = max((len(row[i]) for row in self.rows), default=0) <= SHORT_CELL
            side = "left" if i == 0 or name in self.left else "right"
            table.add_column(Text(name), justify=side, no_wrap=short, overflow="fold")  # type: ignore[arg-type]
        for i, row in enumerate(self.rows):
            table.add_row(*map(Text, row), style="bold" if i in self.marked else "")
        return Group(table, *([Text("\n" + " ".join(self.notes), style="dim")] if self.notes else []))

    def __str__(self) -> str:
        return print_to_text(self)


def make_tuned_table(comparison: Comparison) -> TextTable:
    """A comparison on test data, cheapest first: metrics, the loss, and its change against the best uniform plan."""
    names, chosen = comparison.metric_names, comparison.chosen
    reference = comparison.baseline or chosen
    changes = [
        "" if t is reference else format_change_cell(compare_losses(t, reference)) for t in comparison.tunings
    ]
    rows = [
        (
            format_role(t.role, t.plan, comparison.space),
            *(
                format_metric(n, t.metrics[n], t.compute_metric_interval(n)) if n in t.metrics else ""
                for n in names
            ),
            format_bytes(t.memory_bytes),
            "diverged" if t.failed else format_loss(t.loss, t.loss_error),
            change,
        )
        for t, change in zip(comparison.tunings, changes, strict=True)
    ]
    compared_with = "the plan" if reference is chosen else "the best uniform plan"
    seeds = max(len(t.records) for t in comparison.tunings)
    caption = "On test data" + (f", mean and standard error of {seeds} seeds" if seeds > 1 else "")
    titles = [format_metric_name(name) for name in names]
    notes = []
    for name, least in comparison.unbeaten_commonest_scores.items():
        score = format_metric(name, least)
        notes.append(
            f"{format_metric_name(name).capitalize()}: nothing tuned is certainly better than giving "
            f"every row the most common answer, which scores {score}."
        )
    if any(changes):
        notes.append(f"Change: the row's test loss compared with {compared_with}'s.")
    if "(" in "".join(changes):
        rows_of_losses = len(chosen.records[0].row_tokens)
        notes.append(f"In brackets: 95% intervals, for losses computed over {rows_of_losses} test rows.")
    if names:
        notes.append(f"Metrics: on {len(chosen.row_scores[names[0]])} test rows.")
    if "chance" in "".join(changes):
        notes.append(CHANCE_NOTE)
    if seeds == 1 and any(changes):
        notes.append(
            "Each plan was tuned with one seed. Results differ between seeds: use --seeds 3 to see by how much."
        )
    unscored = dict.fromkeys(t.records[0].unscored for t in comparison.tunings if t.records[0].unscored)
    notes += [f"{reason.capitalize()}." for reason in unscored]
    heads = ("plan", *titles, "size", "test loss", "change")
    marked = [comparison.tunings.index(comparison.deployed or chosen)]
    return TextTable(caption, heads, rows, marked=marked, notes=notes)


def make_record_table(
    records: Sequence[TuningRecord], space: SearchSpace, plan: Plan | None, deployed: Sequence[str] = ()
) -> TextTable:
    """Every tuning of a run, oldest first; those of what is to be deployed, by their ids, stand out."""
    rows = [
        (
            record.id,
            format_role(classify_record(record, space, plan), record.plan, space),
            str(record.seed),
            str(record.steps),
            "" if record.learning_rate is None else f"{record.learning_rate:g}",
            format_bytes(record.memory_bytes),
            "diverged" if record.failed else format_loss(record.test_loss),
            format_time(record.seconds),
        )
        for record in records
    ]
    heads = ("id", "plan", "seed", "steps", "rate", "size", "test loss", "time")
    marked = [i for i, record in enumerate(records) if record.id in deployed]
    return TextTable("Tunings", heads, rows, left=("plan",), marked=marked)


@dataclass(frozen=True)
class GroupGrid:
    """A grid of groups, kinds down and layers across (`emb` for that of the embeddings).

    Attributes:
        cells: for each row, the index of the group at each column; None if there is none.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[int | None, ...], ...]


def arrange_groups(space: SearchSpace) -> GroupGrid | None:
    """Kinds by layers; None unless every group has a kind and a layer of its own."""
    index = {(group.kind, group.depth): i for i, group in enumerate(space.groups)}
    depths = sorted({depth for _, depth in index if depth is not None})
    if len(index) < len(space) or any(depth is None for _, depth in index):
        return None
    kinds = list(dict.fromkeys(kind for kind, _ in index))
    cells = tuple(tuple(index.get((kind, depth)) for depth in depths) for kind in kinds)
    layers = {group.depth for group in space.groups if not group.is_embedding}
    heads = tuple(str(depth) if depth in layers else "emb" for depth in depths)
    return GroupGrid(tuple(kind or "group" for kind in kinds), heads, cells)


def make_plan_table(plan: Plan, space: SearchSpace) -> TextTable:
    """Bits and rank of every group: a row for each layer, or for each group if groups name no layers."""
    levels = map(format_level_label, plan.bits)
    cells = [f"{level} r{rank}" if rank else level for level, rank in zip(levels, plan.ranks, strict=True)]
    grid = arrange_groups(space)
    if grid is None:
        return TextTable("Plan", ("group", "bits, rank"), list(zip(space.names, cells, strict=True)))
    rows = []
    for column, layer in enumerate(grid.columns):
        groups = [row[column] for row in grid.cells]
        rows.append((layer, *("" if g is None else cells[g] for g in groups)))
    return TextTable("Plan", ("layer", *grid.rows), rows)


def summarize_record(record: TuningRecord, space: SearchSpace, plan: Plan | None) -> str:
    """A finished tuning in one line."""
    name = format_role(classify_record(record, space, plan), record.plan, space)
    if record.failed:
        return f"{name}, seed {record.seed}: {record.failed}"
    metrics = [
        f"{format_metric_name(name)} {format_metric(name, mean, compute_score_interval(record.row_scores[name]))}"
        for name, mean in record.metrics.items()
    ]
    losses = ", ".join([f"test loss {format_loss(record.test_loss)}", *metrics])
    return f"{name}, seed {record.seed}: {losses}, {format_bytes(record.memory_bytes)}, {format_time(record.seconds)}"


def make_allocation_table(allocation: Allocation, result: SearchResult) -> TextTable:
    """The allocated plan, every uniform plan that fits, and the plan shuffled, by predicted loss."""
    space, plan = result.space, allocation.plan
    shuffled = [shuffle_plan(space, plan)] if can_shuffle(space, plan) else []
    others = [*allocation.uniform]
    others += predict_uniform(space, build_additive_table(space, result.sensitivities), plan, shuffled)
    rows = [("plan: " + format_plan(plan, space), format_bytes(allocation.memory_bytes), "", "", "")]
    for other in sorted(others, key=lambda u: (u.gain, u.memory_bytes)):
        name = "shuffled" if other.plan in shuffled else format_plan(other.plan, space)
        low, high = other.interval
        change = (f"{other.gain:+.3f}", f"{low:+.3f} to {high:+.3f}", "" if other.is_certain else "chance")
        rows.append(
            (name, format_bytes(other.memory_bytes), *(("", "", "") if other.plan == plan else change))
        )
    notes = []
    if any(row[3] for row in rows):
        notes.append(
            "Change: the row's predicted loss minus the plan's, in nats. Tuning makes these changes smaller."
        )
        notes.append("On SmolLM2 these 90% intervals contained all 98 changes that were measured.")
    if any(row[4] for row in rows):
        notes.append(CHANCE_NOTE)
    if shuffled:
        notes.append("Shuffled: its choices on other linears of the same shape; --against shuffled tunes it.")
    heads = ("plan", "size", "change", "interval", "")
    return TextTable("Predicted by the sensitivities", heads, rows, left=("",), marked=(0,), notes=notes)


def make_predicted_front_table(result: SearchResult) -> TextTable:
    """Memory against predicted loss: plans of every size, and the uniform plans of the least rank between them."""
    space, allocations = result.space, solve_front(result.space, result.sensitivities)
    sizes = [(a.memory_bytes, a.predicted_loss, format_plan(a.plan, space), "") for a in allocations]
    table = build_additive_table(space, result.sensitivities)
    uniform = list_least_rank_uniform_plans(space)
    losses = compute_table_losses(table, space.encode_many(uniform)).tolist() if uniform else []
    for plan, loss in zip(uniform, losses, strict=True):
        bytes_ = space.memory_bytes(plan)
        best = solve(space, result.sensitivities, bytes_)
        sizes.append((bytes_, loss, format_plan(plan, space), f"{loss - best.predicted_loss:+.3f}"))
    rows = [(format_bytes(bytes_), f"{loss:.3f}", name, lead) for bytes_, loss, name, lead in sorted(sizes)]
    notes = [
        "Loss: nats above 16 bits without adapters. "
        "Lead: how much lower the loss of the best plan of the same size is."
    ]
    heads, marked = ("size", "loss", "plan", "lead"), [i for i, row in enumerate(rows) if row[3]]
    return TextTable("Predicted for every size", heads, rows, left=("plan",), marked=marked, notes=notes)


def make_comparison_table(result: SearchResult) -> TextTable:
    """For every budget the best plan, and below it the best uniform plan.

    Losses are the strategy's estimates, from all evaluations together; `seen` is the mean of the plan's own.
    """
    rows: list[tuple[str, ...]] = []

    def list_cells(plan: EvaluatedPlan) -> tuple[str, ...]:
        seen = format_loss(plan.observed) if plan.evaluations else "not yet"
        return format_bytes(plan.memory_bytes), format_loss(plan.loss, plan.loss_std), seen

    for row in result.comparisons:
        best, uniform = row.chosen, row.baseline
        name = ("plan: " if best.evaluations else "predicted: ") + format_plan(best.plan, result.space)
        change = format_change_cell(row.change)
        rows.append((format_bytes(row.budget_bytes), name, *list_cells(best), change))
        if uniform is None:
            rows.append(("", "no uniform plan fits", "", "", "", ""))
        else:
            rows.append(("", format_plan(uniform.plan, result.space), *list_cells(uniform), ""))
    marked = range(0, len(rows), 2)
    heads = ("within" if result.memory_budgets else "up to", "plan", "size", "estimate", "seen", "change")
    notes = ["Change: the estimate relative to the best uniform plan's, plus or minus two standard errors."]
    return TextTable("On validation data", heads, rows, left=("plan",), marked=marked, notes=notes)


def make_failure_table(result: SearchResult) -> TextTable:
    """The first failures with their reasons."""
    failures = result.failures()[:FAILURES_SHOWN]
    rows = [(str(t.id), format_plan(t.plan, result.space), t.reason) for t in failures]
    return TextTable("Failed evaluations", ("trial", "plan", "reason"), rows, left=("plan", "reason"))


def render_result(result: SearchResult, comparison: Comparison | None = None) -> Group:
    """The finding in a sentence, and for every budget the best plan beside the best uniform one."""
    failed, running = len(result.failures()), len(result.trials) - len(result.ended_trials)
    spent = f"{len(result.ended_trials)} evaluations" + (f", {failed} failed" if failed else "")
    spent += f", {running} more not finished" if running else ""
    spent += f"; spent {format_evaluations(result.spent)}; strategy {result.strategy}, seed {result.seed}."
    parts: list[Any] = [Text(summarize_run(result, comparison), style="bold"), Text()]
    if result.comparisons:
        parts += [make_comparison_table(result), Text()]
    return Group(*parts, Text(spent, style="dim"))


def render_comparison(comparison: Comparison) -> Group:
    """A comparison on test data: what to deploy, what was found, and every plan that was tuned."""
    answer = make_comparison_headline(comparison)
    lines = [Text(answer, style="bold"), Text(summarize_comparison(comparison, headline=answer))]
    return Group(*lines, Text(), make_tuned_table(comparison))


def print_to_text(thing: object) -> str:
    """What rich prints of an object, as plain text."""
    console = Console(file=io.StringIO(), width=TEXT_COLUMNS, color_system=None, force_jupyter=False)
    console.print(thing)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]
