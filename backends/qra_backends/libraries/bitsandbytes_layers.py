"""bitsandbytes' linear layers, alike in train and eval mode; needs bitsandbytes at import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from torch import Tensor, nn

from qra_backends.modules import dequantized_linear

NUMBERS_AT_ONCE = 1 << 20
"""Of a weight, while it is dequantized on a CPU, which makes two copies in float32 of what it multiplies; a GPU makes
none, and is called once."""


class SteadyLinear4bit(Linear4bit):
    """A Linear4bit that never repacks itself.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 repacks the weight in place at the first forward in eval mode without
    a gradient; from then on gradients to the input are lost, `dequantize_4bit` reads garbage, and state_dict saves
    transposed scales. A flag keeps the layer as it is.
    """

    def __init__(self, packed: Tensor, state: QuantState, bias: nn.Parameter | None):
        out_features, in_features = state.shape
        kind = {"compress_statistics": state.nested, "quant_type": state.quant_type}
        super().__init__(in_features, out_features, bias=False, compute_dtype=state.dtype, device="meta", **kind)
        self.support_avx512bf16_for_cpu = False
        self.weight: Any = Params4bit(
            packed,
            requires_grad=False,
            quant_state=state,
            blocksize=state.blocksize,
            module=None,  # which would be a circle: bytes of a layer that is let go would wait for the collector
            bnb_quantized=True,
            **kind,
        )
        self.quant_state = state
        self.register_parameter("bias", bias)

    def tensors(self) -> dict[str, Tensor]:
        """Those that the layer was made of, by name."""
        return state_tensors(self.weight.data, self.weight.quant_state)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (out, in) in `dtype` (default: the layer's own)."""
        weight = dequantize_4bit(self.weight.data, self.weight.quant_state)
        return weight if dtype is None else weight.to(dtype)

    def rows(self, at: Tensor) -> Tensor:
        """The rows (n, in) of the weight with indices `at` (n,)."""
        return self.dequantize()[at]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A deep copy of Params4bit has a state of its own beside the layer's.
        self.quant_state = self.weight.quant_state


class WeightOnlyLinear8bit(Linear8bitLt):
    """y = x Wᵀ + bias with W[o, i] = code[o, i] · row_scale[o] / 127, in train and in eval mode.

    The library's own layer does this only in train mode on a CPU. In eval mode, and on a GPU, it also rounds the
    activations to int8 (LLM.int8), so that the loss of the same weights depends on the mode.

    The library's scales are attributes of the weight, which stay behind when a parent is moved, and which nobody
    counts. Here they are views of the buffer `scale_bits`: float32 (out,) as int32, which no `to(dtype)` rounds.
    """

    scale_bits: Tensor

    def __init__(self, codes: Tensor, row_scale: Tensor, bias: nn.Parameter | None, dtype: torch.dtype):
        out_features, in_features = codes.shape
        super().__init__(in_features, out_features, bias=False, has_fp16_weights=False, threshold=0.0, device="meta")
        self.weight: Any = Int8Params(codes, requires_grad=False, has_fp16_weights=False)
        self.register_buffer("scale_bits", row_scale.view(torch.int32), persistent=False)
        self._share()
        self.register_parameter("bias", bias)
        self.compute_dtype = dtype

    @property
    def row_scale(self) -> Tensor:
        """float32 (out,)."""
        return self.scale_bits.view(torch.float32)

    def tensors(self) -> dict[str, Tensor]:
        """Those that the layer was made of, by name."""
        return {"weight": self.weight.data, "SCB": self.row_scale}

    def forward(self, x: Tensor) -> Tensor:
        return dequantized_linear(x, self.dequantize, self.bias)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """Products are rounded once, from float32."""
        codes, scale = self.weight.data, self.row_scale[:, None] / 127
        weight = torch.empty(codes.shape, dtype=dtype or self.compute_dtype, device=codes.device)
        at_once = max(1, NUMBERS_AT_ONCE // codes.shape[1]) if codes.device.type == "cpu" else len(codes)
        for some, scales, into in zip(codes.split(at_once), scale.split(at_once), weight.split(at_once), strict=True):
            torch.mul(some, scales, out=into)
        return weight

    def rows(self, at: Tensor) -> Tensor:
        """The rows (n, in) of the weight with indices `at` (n,), as `dequantize` gives them."""
        return self.weight.data[at].to(self.compute_dtype).mul_(self.row_scale[at, None] / 127)

    def __getstate__(self) -> dict[str, Any]:
        """Without the library's names, which are views: `torch.save` refuses two dtypes of one storage."""
        weight = Int8Params(self.weight.data, requires_grad=False, has_fp16_weights=False)
        return {**self.__dict__, "_parameters": {**self._parameters, "weight": weight}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()  # a deep copy would keep codes and scales twice

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WeightOnlyLinear8bit:
        super()._apply(fn, recurse)
        self._share()
        return self

    def _share(self) -> None:
        """Let the library's names for codes and scales be what the layer holds."""
        self.weight.CB, self.weight.SCB = self.weight.data, self.row_scale


def state_tensors(packed: Tensor, state: Any) -> dict[str, Tensor]:
    """The tensors of a 4-bit weight: its codes, and those of bitsandbytes' description of it."""
    tensors = {"weight": packed, "absmax": state.absmax, "quant_map": state.code}
    if state.nested:
        tensors["nested_absmax"], tensors["nested_quant_map"] = state.state2.absmax, state.state2.code
        tensors["nested_offset"] = state.offset
    return tensors
