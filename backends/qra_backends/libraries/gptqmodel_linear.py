"""GPTQModel's linear layer, made from given tensors, computing in the model's dtype; needs gptqmodel at import."""

from __future__ import annotations

from collections.abc import Callable

import torch
from gptqmodel.nn_modules.qlinear import PackableQuantLinear
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.quantization import FORMAT
from torch import Tensor, nn

from qra_backends.modules.functional import dequantized_linear
from qra_backends.modules.linear import TemporaryWeight


class GPTQLinear(TorchLinear):
    """A layer in GPTQ's second format whose scales stay as they are stored, whatever the model is cast to.

    The library's own layer unpacks by other code in train and in eval mode, keeps caches after the latter, casts its
    16-bit scales with the model, and lets autograd hold its dequantized weight. PEFT goes by the class: it puts its
    GPTQ layer on top, which refuses to merge.
    """

    qweight: Tensor
    scales: Tensor

    SUPPORTS_BACKEND_SELECTION = False  # not to be found when GPTQModel looks for kernels among its subclasses

    def __init__(
        self,
        tensors: dict[str, Tensor],
        *,
        bits: int,
        group_size: int,
        out_features: int,
        in_features: int,
        bias: nn.Parameter | None,
        dtype: torch.dtype,
    ):
        super().__init__(
            bits=bits,
            group_size=group_size,
            sym=False,
            desc_act=False,
            in_features=in_features,
            out_features=out_features,
            register_buffers=False,
            format=FORMAT.GPTQ_V2,
        )
        self.qzero_format(2)
        self.dtype = dtype
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.register_parameter("bias", bias)

    @classmethod
    def verify_supports_params(cls) -> None:
        """What the parent supports holds here; the library wants each class to say it anew."""

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (out, in), computed by GPTQModel in float16 and cast to `dtype` (default: the layer's own)."""
        weight = PackableQuantLinear.dequantize_weight(self)
        for name in ("wf_unsqueeze_zero", "wf_unsqueeze_neg_one"):  # tables of shifts, made anew when wanted
            self._buffers.pop(name, None)
        return weight.t().to(dtype or self.dtype, memory_format=torch.contiguous_format)

    def forward(self, x: Tensor) -> Tensor:
        return dequantized_linear(x, self.dequantize, self.bias)

    @property
    def weight(self) -> Tensor:
        """A dequantized copy, for libraries that ask for shape, dtype and device."""
        return TemporaryWeight(self.dequantize())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GPTQLinear:
        scales = self.scales
        super()._apply(fn, recurse)
        self.scales = scales.to(self.qweight.device)
        return self
