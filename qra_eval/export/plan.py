"""Format `plan`: plan.json itself, which other runs and scripts take."""

from __future__ import annotations

import shutil
from pathlib import Path

from qra_eval.export.base import Exported, Exporter
from qra_eval.export.tuned import TunedRun
from qra_eval.tuning.saved import PLAN_FILE


class PlanExporter(Exporter):
    """Bits and rank of every group, with its linears; see `qra_search.space.serialization.plan_to_dict`."""

    name = "plan"
    summary = "plan.json: bits and rank of every group"
    file = True

    def check(self, run: TunedRun) -> list[str]:
        return []

    def write(self, run: TunedRun, out: Path) -> Exported:
        shutil.copyfile(run.folder / PLAN_FILE, out)
        return Exported(out, ("choices only: there is nothing in it whose logits could be compared",))
