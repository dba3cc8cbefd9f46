"""Format `vllm`: a run in our own formats, as our plug-in of vLLM loads it; transformers loads the same folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qra_eval.export.base import Exported
from qra_eval.export.peft import PEFTExporter
from qra_eval.export.tuned import TunedRun
from qra_search.engines import room_for
from qra_search.workflow.export import serve_command

ENGINE = "vllm"


class VLLMExporter(PEFTExporter):
    """As `peft`, with the adapter at the one rank and scaling that vLLM knows.

    Fused matrices may have shards at any levels: `qra_backends.served.vllm_plugin` holds each apart.
    """

    name = "vllm"
    summary = "the same for vLLM with this package's plug-in: any levels, embeddings and head too"

    def __init__(self) -> None:
        super().__init__(pad_ranks=True)

    def check(self, run: TunedRun) -> list[str]:
        reasons = super().check(run)
        if not run.is_plain():
            reasons.append(f"{run.config.model_type} computes with transposed or stacked weights: export as merged")
        try:
            room_for(ENGINE, max(factors.rank for factors in run.factors.values()))
        except ValueError as error:
            reasons.append(f"{error}: search with --engine {ENGINE}, or export as merged")
        return reasons

    def write(self, run: TunedRun, out: Path) -> Exported:
        done = super().write(run, out)
        note = f"serve it where this package is installed beside vLLM: {serve_command(ENGINE, out)}"
        return replace(done, notes=(*done.notes, note))
