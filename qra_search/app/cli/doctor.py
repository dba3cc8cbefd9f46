"""`qra doctor`: whether the files of a run or of the cache are whole, or which graphics cards a model fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer

from qra_search.allocate.sensitivities import read_sensitivities
from qra_search.app.cli import common
from qra_search.app.cli.app import FAILED
from qra_search.app.cli.common import argument
from qra_search.app.config import RunConfig, load_config
from qra_search.app.evaluator import build_evaluator
from qra_search.app.report.table import TextTable
from qra_search.app.tunable import TunableEvaluator
from qra_search.app.tuning_folder import TuningFolder
from qra_search.errors import BadInput, EvaluationFailed, describe
from qra_search.files import is_whole, read_json
from qra_search.log.journal import TrialLog
from qra_search.space.memory import format_bytes
from qra_search.space.serialization import read_choices, read_plan_file


class FileCheck(NamedTuple):
    """The result for one file: a `fault` is damage, a `note` is worth knowing."""

    level: Literal["ok", "note", "fault"]
    what: str
    found: str
    advice: str = ""


@common.with_settings(
    "config",
    "bits",
    "ranks",
    "granularity",
    "engine",
    "backend",
    "seed",
    "device",
    "evaluator",
    *common.OF_SEARCH,
)
def doctor(
    given: Mapping[str, Any],
    folder: Annotated[Path | None, argument("[FOLDER]", "A run's folder, or the cache.")] = None,
    as_json: common.Json = False,
) -> None:
    """Check that the files in a folder are whole, or say which graphics cards a model fits.

    In a folder, every tensor file is compared with the SHA-256 that was written beside it, every line of a trial log
    with its checksum, and the files of a run are read. Exit status 1 if a file is damaged.

    With a model: the cards that a search and its final tuning fit, by the model's config.json alone, and the settings
    that make them fit.

    [bold]Examples[/]

        qra doctor ~/.cache/qra

        qra doctor --model path/to/model --task train.jsonl
    """
    if any(given.values()) == (folder is not None):
        raise BadInput(
            "give qra doctor a FOLDER to check its files, or --model to list the GPUs that it fits"
        )
    if folder is None:
        if given["model"] is None:
            raise BadInput("--model is missing: name the model to list the GPUs that it fits")
        _print_cards(common.read_settings(given), as_json=as_json)
        return
    checks = check_files(folder)
    faults = [i for i, check in enumerate(checks) if check.level == "fault"]
    if as_json:
        common.print_json([check._asdict() for check in checks])
    else:
        heads = ("", "file", "found", "what to do")
        common.stdout().print(TextTable("", heads, checks, left=heads, marked=faults))
        print(f"\n{len(faults)} damaged." if faults else "\nNo file is damaged.")
    if faults:
        raise typer.Exit(FAILED)


def check_files(folder: Path) -> list[FileCheck]:
    """Checks of the tensor files, trial logs and other files of runs in a folder."""
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder: give that of a run, or the cache")
    checks = []
    for pattern, read in READERS.items():
        for file in sorted(folder.rglob(pattern)):
            name = str(file.relative_to(folder))
            try:
                found = read(file)
            except (
                LookupError,
                TypeError,
                ValueError,
                ArithmeticError,
                AttributeError,
                EvaluationFailed,
            ) as error:
                checks.append(FileCheck("fault", name, "damaged", describe(error)))
            else:
                is_checked = isinstance(found, list)
                results = found if is_checked else [FileCheck("ok", "", "can be read")]
                checks += [check._replace(what=name + check.what) for check in results]
    return checks or [FileCheck("note", str(folder), "no files of a run or of the cache in it")]


def _check_tensors(file: Path) -> list[FileCheck]:
    whole = is_whole(file)
    if whole is None:
        return [FileCheck("note", "", "no digest beside it: from another program")]
    if whole:
        return [FileCheck("ok", "", "as it was written")]
    advice = "delete it: a file of the cache is made again; for a run, repeat `qra finetune`"
    return [FileCheck("fault", "", "damaged: its bytes are not those that were written", advice)]


def _check_log(file: Path) -> list[FileCheck]:
    counts = Counter(trial.status for trial in TrialLog(file))
    return [FileCheck("ok", "", ", ".join(f"{n} {status}" for status, n in counts.items()) or "no trials")]


READERS: dict[str, Callable[[Path], Any]] = {
    "*.safetensors": _check_tensors,
    "trials.jsonl": _check_log,
    "config.yaml": load_config,
    "plan.json": lambda file: read_choices(read_plan_file(file)),
    "record.json": lambda file: TuningFolder(file.parent).record(),
    "adapter_config.json": read_json,
    "sensitivities.json": read_sensitivities,
}
"""What reads the files of a pattern; it returns its checks, or raises for a damaged file."""


def _print_cards(config: RunConfig, *, as_json: bool) -> None:
    """Print which graphics cards a run fits, and with which settings; weights are neither read nor needed;
    raises BadInput if the evaluator cannot say."""
    with (
        common.make_view(quiet=as_json) as view,
        closing(build_evaluator(config, view.progress, weights=False)) as evaluator,
    ):
        cards = list(evaluator.cards()) if isinstance(evaluator, TunableEvaluator) else []
    if not cards:
        raise BadInput(f"evaluator {config.evaluator!r} does not say which cards a run fits")
    if as_json:
        common.print_json(cards)
        return
    rows = [
        (card["name"], "none: choose a smaller model, or --bits 2,3 and --ranks 4", "", "")
        if card["settings"] is None
        else (
            card["name"],
            card["settings"],
            f"{format_bytes(card['peak_bytes'])} ({card['phase']})",
            format_bytes(card["host_bytes"]),
        )
        for card in cards
    ]
    heads = ("card", "settings that fit", "highest peak", "host memory")
    common.stdout().print(TextTable("", heads, rows, left=heads))
