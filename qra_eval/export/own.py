"""Format `vllm`: a run in this project's own formats, as our plug-ins for vLLM and transformers load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qra_backends.layout import Layout
from safetensors.torch import load_file
from torch import Tensor, nn

from qra_eval.export.copied import WEIGHTS_FILE, CopyingExporter
from qra_eval.export.tuned import Chosen, TunedRun
from qra_eval.models.embeddings import find_tables, put_tables, uninstall_tables
from qra_search.engines import room_for
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.workflow.export import serve_command


class OwnExporter(CopyingExporter):
    """Any level of any backend, embeddings and head too; see `qra_backends.layout` for what the folder holds.

    vLLM knows one rank and one scaling, so the adapter is written at the largest.
    """

    name = "vllm"
    summary = "the run's own codes for vLLM and transformers with our plug-ins, the adapter beside them"
    engine = "vllm"
    pad_ranks = True

    def check(self, run: TunedRun) -> list[str]:
        reasons = super().check(run)
        try:
            room_for(self.engine, max(linear.rank for linear in run.linears))
        except ValueError as error:
            reasons.append(str(error))
        return reasons

    def tensors(self, run: TunedRun, module: nn.Module) -> dict[str, Tensor] | None:
        return layout_of(run).tensors(module)

    def tables(self, run: TunedRun) -> dict[str, dict[str, Tensor]]:
        return {name: layout_of(run).tensors(module) for name, module in run.tables.items()}

    def quantization(self, run: TunedRun) -> dict[str, Any]:
        return layout_of(run).config()

    def reload(self, run: TunedRun, out: Path) -> tuple[Any, str]:
        """The tuned model with the weights of the written file, decoded in this process."""
        tensors, layout = load_file(out / WEIGHTS_FILE), layout_of(run)

        def module(name: str, out_features: int, in_features: int) -> nn.Module:
            own = layout.expected(name, out_features, in_features, run.dtype)
            parts = {key: tensors[f"{name}.{key}"] for key in own}
            return layout.module(name, parts, out_features=out_features, in_features=in_features, dtype=run.dtype)

        def weight(linear: Chosen) -> Tensor:
            if linear.name not in layout.levels:
                return tensors[f"{linear.name}.weight"]
            return run.backend.dequantize(module(linear.name, linear.out_features, linear.in_features))

        model = run.with_weights(weight)
        base = model.get_base_model()
        uninstall_tables(base)
        if run.tables:
            put_tables(
                base, run.backend, lambda t: module(t.name, *t.linear.weight.shape) if t.name in run.tables else None
            )
        return model, f"serve it where vLLM and qra-toolkit are installed: {serve_command(self.engine, out)}"


def layout_of(run: TunedRun) -> Layout:
    """The levels of a run's quantized linears and tables, and which of these the tables are."""
    levels = {name: group["bits"] for group in run.plan["groups"] for name in group["linears"]}
    quantized = {name: level for name, level in levels.items() if level != UNQUANTIZED_BITS}
    found = find_tables(run.base) if run.tables else []
    ends = [table.name if table.name in run.tables else None for table in (*found[:1], *found[-1:])]
    return Layout(run.backend, quantized, *ends)
