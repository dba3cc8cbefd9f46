"""Exports of a tuned plan to the formats of other tools, which are found through entry points."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from qra_eval.export.tuned import TunedRun
from qra_search import plugins
from qra_search.errors import BadInput

__all__ = ["Exported", "Exporter", "export"]
Run = TunedRun | str | Path


@dataclass(frozen=True)
class Exported:
    """What was written, and how far its logits on a few sentences, in the other tool, are from the tuned model's.

    Attributes:
        tuning: its id, if it is one of a run.
        notes: what a user should know of it, one sentence each: how to load it, and where it is not exact.
        largest_logit_difference: None if nothing was compared, and the notes say why.
        largest_logit: largest absolute logit of the tuned model, to see the difference against.
        same_next_token: share of the positions where both find the same token the likeliest.
    """

    path: Path
    notes: tuple[str, ...] = ()
    largest_logit_difference: float | None = None
    largest_logit: float | None = None
    same_next_token: float | None = None
    tuning: str = ""


class Exporter(ABC):
    """One format, registered in the entry-point group `qra.exporters`; its options are those of its constructor.

    Attributes:
        needs_adapter: whether it writes nothing of a plan that is untuned.
    """

    name: ClassVar[str]
    needs_adapter: ClassVar[bool] = True

    def list_issues(self, run: TunedRun) -> list[str]:
        """Reasons why this run cannot be written, each with its mend; empty if it can. Writes nothing."""
        return []

    @abstractmethod
    def write(self, run: TunedRun, out: Path) -> Exported:
        """Write a run without issues to `out`, an empty folder."""

    def export(self, run: Run, out: str | Path) -> Exported:
        """Check a run and write it; see `qra_eval.export.export`."""
        out = Path(out)
        if out.name in ("", "..") or out.is_symlink():
            out = out.resolve()
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise BadInput(f"{out} already exists: give another path, or remove it first")
        tuned = run if isinstance(run, TunedRun) else TunedRun(run)
        reasons = self.list_issues(tuned)
        if self.needs_adapter and tuned.adapter_folder is None:
            reasons = ["it needs an adapter: leave out --untuned, or take gguf, merged or recipe"]
        if reasons:
            raise BadInput(f"this run cannot be exported as {self.name}: " + "; ".join(reasons))
        out.mkdir(parents=True, exist_ok=True)
        try:
            with torch.random.fork_rng(devices=[]):  # loading with peft draws the factors' first values
                return self.write(tuned, out)
        except BaseException:
            shutil.rmtree(out)
            raise


def export(run: Run, format: str, out: str | Path, **options: Any) -> Exported:
    """Write a tuned run in the format of another tool.

    Args:
        run: folder that `qra finetune` wrote into (or a `TunedRun`, whose model is then loaded once for several).
        out: folder or file to write; must not exist, or be an empty folder.
        options: of the format.

    Raises:
        BadInput: the format cannot hold this plan (the message gives every reason), no tuned plan, an unknown format or
            option, or something in the way at `out`; nothing was written.
    """
    exporter = plugins.call_with_options(plugins.load("exporters", format), f"format {format!r}", options)
    exported: Exported = exporter.export(run, out)
    return exported
