"""What checkpoints of packed integer weights have in common: grids, files, the adapter beside them, the comparison."""

from __future__ import annotations

import copy
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from qra_backends.integers.linear import IntegerLinear
from safetensors.torch import save_file
from torch import Tensor

from qra_eval.export.base import Exported, Exporter, compared
from qra_eval.export.grids import IntegerGrid, group_that_divides, integer_grid
from qra_eval.export.peft import write_adapter
from qra_eval.export.shards import target_bits
from qra_eval.export.tuned import Chosen, TunedRun
from qra_eval.tuning.saved import ADAPTER_FOLDER
from qra_search.space.memory import UNQUANTIZED_BITS

WIDTHS = (2, 3, 4, 8)
DEFAULT_WIDTHS = (4, 8)
"""What every engine takes. Rounded a second time at 2 or 3 bits, SmolLM2 finds another likeliest token everywhere."""
GROUP_SIZE = 64
WEIGHTS_FILE = "model.safetensors"


class PackedExporter(Exporter):
    """A model folder whose searched linears are packed; a format adds its tensors, its config and its reader.

    Args:
        group_size: weights of a row that share a scale, where a linear is rounded again; halved for a linear whose row
            it does not divide.
        bits: widths that may be written, as a list or as text ("2,3,4,8", or "8" to lose next to nothing). A linear
            of another width takes the next wider one. Default: all if every linear is stored in this format already,
            else 4 and 8.
        merge: add the adapter to the weights before they are rounded, instead of writing it beside them. At 2 to 4 bits
            this loses much of it.
        shards: `refuse` plans that engines which fuse q, k, v and gate, up cannot load, `widen` the narrower ones, or
            `ignore` it, for transformers only.
    """

    symmetric: bool = True
    layer: ClassVar[type[IntegerLinear]]
    """Whose tensors are this format's own, to be copied."""
    pad_ranks: ClassVar[bool] = False
    """Whether the adapter is written at one rank for all linears."""
    rounded: ClassVar[str]
    """Why linears are rounded again, in a note."""
    adapter: ClassVar[str]
    """What puts the adapter on top, in a note."""

    def __init__(self, group_size: int = GROUP_SIZE, bits: Any = None, merge: bool = False, shards: str = "refuse"):
        self.group_size, self.merge, self.shards = int(group_size), merge, shards
        self._widths = None if bits is None else widths_of(bits)

    @abstractmethod
    def tensors(self, run: TunedRun, linear: Chosen, grid: IntegerGrid) -> dict[str, Tensor]:
        """What is stored of a quantized linear, by full name."""

    @abstractmethod
    def quantization(self, run: TunedRun, bits: dict[str, int]) -> dict[str, Any]:
        """The `quantization_config` of the folder's config.json."""

    @abstractmethod
    def reload(self, run: TunedRun, out: Path, bits: dict[str, int]) -> tuple[Any, str | None]:
        """The model of the written folder, None if nothing here can read it; and a note on that."""

    def widths(self, run: TunedRun) -> tuple[int, ...]:
        """Those that may be written."""
        if self._widths is not None:
            return self._widths
        quantized = [linear for linear in run.linears if linear.bits != UNQUANTIZED_BITS]
        return WIDTHS if all(self.own(run, linear, linear.bits) is not None for linear in quantized) else DEFAULT_WIDTHS

    def own(self, run: TunedRun, linear: Chosen, bits: int) -> IntegerLinear | None:
        """The quantized linear, if its tensors are this format's at so many bits and can be copied."""
        if self.merge or bits != linear.bits or bits == UNQUANTIZED_BITS:
            return None
        module = run.module(linear.name)
        return module if isinstance(module, self.layer) else None

    def size(self, run: TunedRun, linear: Chosen, bits: int) -> int:
        """Weights of a row that share a scale in what is written."""
        own = self.own(run, linear, bits)
        return group_that_divides(linear.in_features, self.group_size) if own is None else own.group_size

    def scale_dtype(self, run: TunedRun) -> torch.dtype:
        """Of the scales as they are stored."""
        return run.dtype

    def check(self, run: TunedRun) -> list[str]:
        _, reasons, _ = target_bits(run.linears, self.widths(run), self.shards)
        if not run.is_plain():
            reasons.append(
                f"{run.config.model_type} computes with transposed or stacked weights, not with linears that could be "
                "stored one by one: export as merged instead"
            )
        return reasons

    def write(self, run: TunedRun, out: Path) -> Exported:
        bits, _, notes = target_bits(run.linears, self.widths(run), self.shards)
        state: dict[str, Tensor] = {}
        kept = quantized = copied = 0
        for linear in run.linears:
            weight = run.merged(linear) if self.merge else run.weight(linear)
            if bits[linear.name] == UNQUANTIZED_BITS:
                state[f"{linear.name}.weight"] = weight.to(run.dtype)
                continue
            own = self.own(run, linear, bits[linear.name])
            if own is not None:
                tensors = {f"{linear.name}.{key}": tensor.clone() for key, tensor in own.tensors().items()}
                state.update(tensors)
                copied += sum(tensor.nbytes for tensor in tensors.values())
                kept, quantized = kept + 1, quantized + 1
                continue
            grid = integer_grid(
                weight,
                bits[linear.name],
                self.size(run, linear, bits[linear.name]),
                symmetric=self.symmetric,
                scale_dtype=self.scale_dtype(run),
                own=None if self.merge else run.affine(linear),
            )
            kept, quantized = kept + grid.same, quantized + 1
            state.update(self.tensors(run, linear, grid))
        written = {linear.name for linear in run.linears}
        for key, value in run.base.state_dict().items():
            if key.rpartition(".")[0] not in written or key.endswith(".bias"):
                state[key] = value
        save_file(untied(state), out / WEIGHTS_FILE, metadata={"format": "pt"})
        config = copy.deepcopy(run.config)
        config.dtype = run.dtype
        config.quantization_config = self.quantization(run, bits)
        config.save_pretrained(out)
        run.base.generation_config.save_pretrained(out)
        run.tokenizer.save_pretrained(out)
        if not self.merge:
            write_adapter(run, out / ADAPTER_FOLDER, pad_ranks=self.pad_ranks, base=out)
            notes.append(f"the adapter is apart, in {out / ADAPTER_FOLDER}: put it on top with {self.adapter}")
        if kept < quantized:
            notes.append(
                f"{quantized - kept} of {quantized} linears were rounded again, {self.rounded}: "
                "their weights are not the tuned ones"
            )
        if copied:
            notes.append(f"{kept} of {quantized} linears are copies of the plan's own tensors: {copied} bytes")
        elif kept:
            notes.append(f"{kept} of {quantized} linears keep the grid that they have, exactly")
        model, note = self.reload(run, out, bits)
        notes += [note] if note else []
        return (
            Exported(out, tuple(notes)) if model is None else compared(out, notes, run, model, rounded=kept < quantized)
        )


def widths_of(bits: Any) -> tuple[int, ...]:
    """Widths from a list, a number, or text with commas.

    Raises:
        ValueError: one is not of 2, 3, 4, 8.
    """
    parts = bits.split(",") if isinstance(bits, str) else [bits] if isinstance(bits, int) else bits
    try:
        widths = tuple(sorted({int(part) for part in parts}))
    except (TypeError, ValueError):
        widths = ()
    if not widths or not set(widths) <= set(WIDTHS):
        raise ValueError(f"bits must be some of {', '.join(map(str, WIDTHS))}, got {bits!r}")
    return widths


def untied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state for safetensors: of tensors that share memory the first one only, all contiguous."""
    seen: set[int] = set()
    kept = {}
    for key, value in state.items():
        if value.numel() and value.data_ptr() in seen:
            continue
        seen.add(value.data_ptr())
        kept[key] = value.detach().contiguous()
    return kept
