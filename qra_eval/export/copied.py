"""What checkpoints of copied weights have in common: tensors, config, the adapter beside them, the comparison."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from qra_backends.integers.linear import IntegerLinear
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qra_eval.export.base import Exported, Exporter, compared
from qra_eval.export.peft import untied, write_adapter, write_config
from qra_eval.export.tuned import Chosen, TunedRun
from qra_eval.tuning.saved import ADAPTER_FOLDER
from qra_search.space.memory import UNQUANTIZED_BITS

WEIGHTS_FILE = "model.safetensors"


class CopyingExporter(Exporter):
    """A model folder whose searched linears are copies of the plan's own tensors; the adapter is apart, in `adapter/`.

    Nothing is rounded: what the engine cannot take as it is stored is refused.
    """

    engine: ClassVar[str]
    """To be searched for, so that the levels are those of this format."""
    pad_ranks: ClassVar[bool] = False
    """Whether the adapter is written at one rank for all linears."""

    @abstractmethod
    def tensors(self, module: nn.Module) -> dict[str, Tensor] | None:
        """What is stored of a quantized linear, by name in it; None if it is stored in another way."""

    @abstractmethod
    def quantization(self, run: TunedRun) -> dict[str, Any]:
        """The `quantization_config` of the folder's config.json."""

    @abstractmethod
    def reload(self, run: TunedRun, out: Path) -> tuple[Any, str]:
        """The model of the written folder with its adapter, and how it was loaded or what loads it."""

    def stored(self, run: TunedRun, linear: Chosen) -> dict[str, Tensor] | None:
        """The tensors of a linear of the plan; None if it is unquantized."""
        return None if linear.bits == UNQUANTIZED_BITS else self.tensors(run.module(linear.name))

    def check(self, run: TunedRun) -> list[str]:
        others = [m for m in run.linears if m.bits != UNQUANTIZED_BITS and self.stored(run, m) is None]
        reasons = []
        if others:
            reasons.append(
                f"{len(others)} linears are stored in another way, such as {others[0].name}: search with --engine "
                f"{self.engine}, or export as merged"
            )
        if not run.is_plain():
            reasons.append(f"{run.config.model_type} computes with transposed or stacked weights: export as merged")
        return reasons

    def write(self, run: TunedRun, out: Path) -> Exported:
        state: dict[str, Tensor] = {}
        copied = size = 0
        for linear in run.linears:
            own = self.stored(run, linear)
            copied += own is not None
            for key, value in (own or {"weight": run.weight(linear)}).items():
                state[f"{linear.name}.{key}"] = value
                size += value.nbytes if own is not None and "quant_state" not in key else 0
        written = tuple(f"{linear.name}." for linear in run.linears)
        for key, value in run.base.state_dict().items():
            if not key.startswith(written) or key.endswith(".bias"):
                state[key] = value
        save_file(untied(state), out / WEIGHTS_FILE, metadata={"format": "pt"})
        write_config(run, out, self.quantization(run))
        write_adapter(run, out / ADAPTER_FOLDER, pad_ranks=self.pad_ranks, base=out)
        model, note = self.reload(run, out)
        notes = [
            f"{copied} of {len(run.linears)} searched weights are copies of the plan's own: {size} bytes with their "
            "scales",
            f"the adapter is apart, in {out / ADAPTER_FOLDER}: put it on top with peft",
            note,
        ]
        return compared(out, notes, run, model)


class IntegerExporter(CopyingExporter):
    """A format of packed integers, which this project can also read."""

    layer: ClassVar[type[IntegerLinear]]
    """Whose tensors are the format's own."""

    def tensors(self, module: nn.Module) -> dict[str, Tensor] | None:
        return module.tensors() if isinstance(module, self.layer) else None

    def sizes(self, run: TunedRun) -> dict[str, tuple[int, int]]:
        """Bits, and weights of a row that share a scale, of every quantized linear by name."""
        found = {}
        for linear in run.linears:
            module = run.module(linear.name)
            if isinstance(module, self.layer):
                found[linear.name] = (module.bits, module.group_size)
        return found

    def unpacked(self, run: TunedRun, out: Path) -> Any:
        """The model of the written file, by this project's own arithmetic."""
        tensors, sizes = load_file(out / WEIGHTS_FILE), self.sizes(run)

        def weight(linear: Chosen) -> Tensor:
            own = {
                key.removeprefix(f"{linear.name}."): value
                for key, value in tensors.items()
                if key.startswith(f"{linear.name}.") and not key.endswith(".bias")
            }
            if linear.name not in sizes:
                return own["weight"]
            bits, size = sizes[linear.name]
            shape = {"out_features": linear.out_features, "in_features": linear.in_features}
            return self.layer(own, bits=bits, group_size=size, **shape, bias=None, dtype=run.dtype).dequantize()

        return run.with_weights(weight)
