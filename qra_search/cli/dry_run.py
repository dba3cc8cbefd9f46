"""What `--dry-run` prints: the resolved config, the space, the cost, and an example as it is tuned on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from qra_search.cli import common
from qra_search.config import RunConfig, dump_config
from qra_search.evaluation.evaluator import RowCount
from qra_search.report.engine_support import storing_text
from qra_search.report.formatting import duration, evaluations_text
from qra_search.space.levels import level_words
from qra_search.space.memory import format_bytes
from qra_search.study.listener import Listener
from qra_search.workflow.dry_run import Costs, embeddings_hint, forecast_command, rows_text
from qra_search.workflow.finetune import Tunings

PLAN_PHASES = ("load", "quantize", "sensitivities")
SHOWN = 600
"""Characters of a part of the example that are shown; of a longer one its end, where the answer is joined to it."""


def print_dry_run(
    config: RunConfig,
    view: Listener,
    *,
    track: Sequence[str] = (),
    begun: bool = False,
    tunings: Tunings | None = None,
    evaluations: float | None = None,
    as_json: bool = False,
) -> None:
    """Build the evaluator, spend nothing, and print what a command would do.

    Args:
        track: trackers, which have to be installed; none of them is begun.
        begun: the search has begun, and so has a task.
        tunings: what would be tuned in full, and no plan searched; None: a search.
        evaluations: full evaluations that the command spends, 0 for a plan alone; None: as the config says.
    """
    facts = forecast_command(config, view, track=track, begun=begun, tunes=tunings is not None, evaluations=evaluations)
    if tunings is not None:
        facts["tunings"] = {"plans": [plan.to_dict() for plan in tunings.plans], "seeds": len(tunings.seeds)}
    if as_json:
        common.emit(facts)
        return
    console = common.stdout()
    console.print("[bold]Config, as resolved[/]")
    console.print(dump_config(config), markup=False)
    console.print("[bold]Space and cost[/]")
    grid = Table.grid(padding=(0, 2))
    if tunings is None:
        costs = _cost_rows(facts["estimate"], config, evaluations)
    else:
        costs = _tuning_rows(facts["estimate"], config, tunings)
    for name, text in (*_space_rows(facts, config, searches=tunings is None and evaluations != 0), *costs):
        grid.add_row(name, Text(text))
    console.print(grid)
    if facts["example"]:
        console.print("\n[bold]An example, as it is tuned on[/]")
        for name, text in example_rows(facts["example"]):
            console.print(f"{name:8}{text}", markup=False, style="bold" if name == "learnt" else "")
    console.print("\nNothing was run. Leave out --dry-run to go on.")


def example_rows(pieces: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The parts of a row that are given and learnt, each as a Python literal, which shows spaces and line ends."""
    rows = []
    for learnt, parts in groupby(pieces, lambda piece: piece["learnt"]):
        text = "".join(piece["text"] for piece in parts)
        cut = "... " if len(text) > SHOWN else ""
        rows.append(("learnt" if learnt else "given", cut + repr(text[-SHOWN:])))
    return rows


def _space_rows(facts: Mapping[str, Any], config: RunConfig, *, searches: bool) -> Iterator[tuple[str, str]]:
    weights, fixed = facts["weights"], facts["fixed_bytes"]

    def size(count: int) -> str:
        return f"{format_bytes(count)}  ({(count - fixed) * 8 / weights:.2f} bits a weight)"

    kinds = ", ".join(f"{count} {kind}" for kind, count in facts["kinds"].items())
    yield "groups", f"{facts['groups']} ({kinds}), {weights:,} weights in {facts['linears']} linears"
    bits, ranks = (", ".join(map(str, values)) for values in (facts["levels"], config.space.ranks))
    yield "choices", f"bits {bits}; ranks {ranks}"
    hint = embeddings_hint(config, fixed, facts["budgets"] or [facts["smallest_bytes"]])
    yield "not searched", format_bytes(fixed) + (f"; {hint}" if hint else "")
    yield "smallest plan", size(facts["smallest_bytes"])
    yield "largest plan", size(facts["largest_bytes"])
    yield "budget", ", ".join(size(b) for b in facts["budgets"]) or "none: the whole front"
    first = "; ".join(
        f"{level_words(p['bits'])}, rank {p['rank']}: {format_bytes(p['memory_bytes'])}" for p in facts["first"]
    )
    if searches:
        yield "evaluated first", first or "no uniform plan fits"
    yield "will run", storing_text(config)
    for name, least in facts["estimate"].get("engines", {}).items():
        yield f"in {name}", _engine_text(least, facts["budgets"])
    for line in rows_text({name: RowCount(**count) for name, count in facts["rows"].items()}):
        yield "rows", line


def _tuning_rows(estimate: Mapping[str, Any], config: RunConfig, tunings: Tunings) -> Iterator[tuple[str, str]]:
    finetune, count = config.finetune, len(tunings)
    each = f"{finetune.steps} steps" if finetune.epochs is None else f"{finetune.epochs:g} epochs"
    yield "tunings", f"{count}, of {each} each: {_many(tunings.plans, 'plan')} with {_many(tunings.seeds, 'seed')}"
    if "evaluation_seconds" in estimate and finetune.epochs is None and config.evaluation.steps:
        seconds = estimate["evaluation_seconds"] * finetune.steps / config.evaluation.steps
        yield "time", f"about {duration(count * seconds)} ({duration(seconds)} a tuning)"
    yield from _peak_rows({n: peak for n, peak in estimate.get("phases", {}).items() if n in ("tune", "reload")})


def _engine_text(least: int | str, budgets: Sequence[int]) -> str:
    """From how many bytes on an engine's own formats hold the model, and whether the budgets allow that."""
    if isinstance(least, str):
        return f"not this model: {least}"
    fits = "" if not budgets else ": fits the budget" if least <= max(budgets) else ": more than the budget"
    return f"from {format_bytes(least)}{fits}, planned with --engine"


def _many(some: Sequence[Any], what: str) -> str:
    return f"{len(some)} {what}{'s' * (len(some) != 1)}"


def _peak_rows(phases: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, peak in phases.items():
        there = f"{format_bytes(peak['device'])} on the GPU, " if peak["device"] else ""
        yield f"peak of {name}", f"{there}{format_bytes(peak['host'])} of this machine's memory"


def _cost_rows(estimate: Mapping[str, Any], config: RunConfig, evaluations: float | None) -> Iterator[tuple[str, str]]:
    costs = Costs(config.search.evaluations, estimate.get("sensitivities_charge", 0.0))
    plans_only, phases = evaluations == 0, dict(estimate.get("phases", {}))
    if plans_only:
        phases = {name: phases[name] for name in PLAN_PHASES if name in phases}
    else:
        many = evaluations_text(costs.evaluations)
        yield "evaluations", f"{many}, by strategy {config.search.strategy}{costs.sensitivities_text}"
    if "total_seconds" in estimate:
        parts = []
        if not plans_only:
            answers = ", but for the answers that it writes" if config.search.metric == "task" else ""
            parts.append(f"{duration(estimate['evaluation_seconds'])} an evaluation{answers}")
        for name, what in (("sensitivities_seconds", "for the sensitivities"), ("setup_seconds", "to quantize")):
            parts += [f"{duration(estimate[name])} {what}"] if estimate.get(name) else []
        yield "time", f"about {duration(estimate['total_seconds'])} ({', '.join(parts)})"
    else:
        yield "time", "unknown until the first evaluation"
    yield from _peak_rows(phases)
    if "phases" not in estimate and "peak_bytes" in estimate:
        yield "peak memory", f"about {format_bytes(estimate['peak_bytes'])}"
    if "disk_bytes" in estimate:
        yield "disk", f"{format_bytes(estimate['disk_bytes'])} for every linear at every bit-width, kept for later runs"
