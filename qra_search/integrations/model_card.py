"""The model card of a tuned plan: what it is, its base, its bits and ranks, what was measured, how to load it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from qra_search.errors import BadInput
from qra_search.files import read_json
from qra_search.report import formatting
from qra_search.report.finding import said
from qra_search.runs.comparison import FOUND, TestResult, read_test
from qra_search.runs.folder import RunFolder
from qra_search.space.levels import level_words
from qra_search.space.memory import format_bytes
from qra_search.study.result import SearchResult

CARD = "README.md"
TAGS = "tags: [lora, quantized, mixed-precision, qra]"


def model_card(run: RunFolder, repo: str, *, load: str) -> str:
    """The card of what is in a tuned run's folder, or in one of its records.

    Args:
        repo: OWNER/NAME that it is uploaded to.
        load: how to load it, in Markdown.

    Raises:
        BadInput: no plan was tuned there.
    """
    plan = read_json(run.plan_file)
    if plan is None or "model" not in plan:
        raise BadInput(f"{run.path} holds no tuned plan: run `qra finetune` on it first")
    base, groups = str(plan["model"]), plan["groups"]
    linears = sum(len(group["linears"]) for group in groups)
    on_hub = base.count("/") == 1 and base[0] not in "./~"
    facts = (
        ("base", f"[{base}](https://huggingface.co/{base})" if on_hub else f"`{Path(base).name}`, where it was tuned"),
        ("memory", f"{format_bytes(plan['memory_bytes'])}, adapters and everything else included"),
        ("choices", f"{len(groups)} of a level and a rank, for {linears} linears"),
        ("levels", _counted(level_words(group["bits"]) for group in groups)),
        ("ranks", _counted(f"rank {group['rank']}" for group in groups)),
        ("quantized by", f"backend `{plan['backend']}`"),
    )
    return "\n".join([
        "---", *([f"base_model: {base}"] if on_hub else []), "library_name: peft", TAGS, "---", "",
        f"# {repo.rpartition('/')[2]}", "",
        "A language model in few bits with a LoRA adapter. The level of every weight and the rank of every adapter "
        "were chosen together by qra, under a budget of bytes.", "",
        "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts), "",
        "`plan.json` has every choice.", "", "## Measured", "", *_measured(run), "", "## Load it", "", load,
    ])  # fmt: skip


def _measured(run: RunFolder) -> list[str]:
    """What the comparison on test rows says, with its intervals; that there is none if there is none."""
    data, result = run.test(), _result(run)
    tested = [t for t in read_test(data) if not t.failed]
    if data is None or result is None or not tested:
        return ["Nothing was measured on test rows."]
    _, task = formatting.model_and_task(result[1])
    rows = max(len(t.row_tokens) for t in tested)
    seen = f", {rows} test rows that nothing else saw" if rows else ""
    known = f"Task `{Path(task).name}`{seen}. Losses are nats a token."
    return [said(result[0], tested, data["limit"]), "", known, "", *_table(tested, result[0])]


def _table(tested: Sequence[TestResult], result: SearchResult) -> list[str]:
    found = next((t for t in tested if t.role == FOUND), None)
    lines = ["| plan | memory | test loss | this one is lower by (95% interval) |", "|---|---|---|---|"]
    for t in tested:
        name = ("**this one**: " if t is found else "") + formatting.tested_name(t, result.space)
        lower = "" if found is None or t is found else formatting.lower_text(found, t)
        lines.append(f"| {name} | {format_bytes(t.memory_bytes)} | {formatting.test_loss_text(t)} | {lower} |")
    return lines


def _result(run: RunFolder) -> tuple[SearchResult, dict[str, Any]] | None:
    """The search's result and its identity; a record of another budget lies in its run's folder."""
    place = next((f for f in (run, RunFolder(run.path.resolve().parent)) if f.exists), None)
    return None if place is None else (place.result(), place.identity())


def _counted(names: Iterable[str]) -> str:
    """How many there are of each, most first."""
    return ", ".join(f"{count} × {name}" for name, count in Counter(names).most_common())
