"""Plug-in of vLLM for model folders in this project's own formats: codes stay as they are, and are multiplied by.

vLLM finds it by the entry point `vllm.general_plugins`. Fused matrices (q, k and v; gate and up) hold one quantized
weight for each shard, so shards may have any levels. Up to 16 tokens at once are multiplied straight from trellis
codes; other weights are decoded at each use.

Needs vllm at import.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.utils import WeightsMapper

from qra_backends.base import COMPUTE_DTYPES
from qra_backends.served.layout import QUANT_METHOD, SEPARATOR, Layout, Shards
from qra_backends.trellis.linear import TrellisLinear

QKV = {"q": 0, "k": 1, "v": 2}
"""vLLM's names of some shards; others have numbers."""
_layers: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()
"""By the name that compiled graphs have of a layer: they cannot hold the layer itself."""


def register() -> None:
    """Tell vLLM of the quantization method; any number of times."""
    register_quantization_config(QUANT_METHOD)(QRAConfig)


class QRAConfig(QuantizationConfig):
    """The `quantization_config` of a folder."""

    def __init__(self, layout: Layout):
        super().__init__()
        self.layout = layout
        self.table = ""

    def get_name(self) -> str:
        return QUANT_METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return list(COMPUTE_DTYPES)

    @classmethod
    def get_min_capability(cls) -> int:
        return 70  # times ten, as Triton requires

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> QRAConfig:
        return cls(Layout.from_config(config))

    @staticmethod
    def get_checkpoint_weight_mapper() -> WeightsMapper:
        """Tensors get the names of parameters."""
        return WeightsMapper(orig_to_new_substr={SEPARATOR: "."})

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """How a layer stores its weight; a table is told by its kind, as some models give it no path."""
        if isinstance(layer, VocabParallelEmbedding):
            path = self.layout.head if isinstance(layer, ParallelLMHead) else self.layout.embedding
            return None if path is None else QRAMethod(self, [path])
        if isinstance(layer, LinearBase):
            parent, _, kind = prefix.rpartition(".")
            names = [f"{parent}.{shard}" for shard in self.packed_modules_mapping.get(kind, [kind])]
            quantized = any(name in self.layout.levels for name in names)
            return QRAMethod(self, names) if quantized else UnquantizedLinearMethod()
        return None


class QRAMethod(LinearMethodBase):
    """Of one linear, of several that vLLM runs as one, or of a table, by the paths of their weights."""

    def __init__(self, config: QRAConfig, names: list[str]):
        self.layout, self.names, self.config = config.layout, names, config

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **others: Any,
    ) -> None:
        if (input_size_per_partition, sum(output_partition_sizes)) != (input_size, output_size):
            raise ValueError(
                f"{self.names[0]}: codes cannot be split among devices: use --tensor-parallel-size 1"
            )
        is_table = isinstance(layer, VocabParallelEmbedding)
        # vLLM pads a table, and cuts the logits.
        layer.qra_out = layer.org_vocab_size if is_table else output_size
        if isinstance(layer, ParallelLMHead) and self.layout.head == self.layout.embedding:
            layer.qra_key = self.config.table
        else:
            sizes = output_partition_sizes if len(self.names) > 1 else [layer.qra_out]
            shapes = {name: (size, input_size) for name, size in zip(self.names, sizes, strict=True)}
            shards = Shards(self.layout, shapes, params_dtype)
            for key, (count, dtype) in shards.buffers.items():
                buffer: Any = nn.Parameter(torch.empty(count, dtype=dtype), requires_grad=False)
                buffer.weight_loader = partial(_load, shards, key)
                layer.register_parameter(key, buffer)
            layer.qra_shards, layer.qra_key = shards, _register_layer(self.names[0], layer)
            if is_table:
                self.config.table = layer.qra_key
        if not hasattr(layer, "weight"):
            layer.weight = torch.empty(0, dtype=params_dtype)  # LoRA asks it for dtype and device

    def process_weights_after_loading(self, layer: Any) -> None:
        if hasattr(layer, "qra_shards"):
            buffers = {key: layer.get_parameter(key).data for key in layer.qra_shards.buffers}
            layer.qra_modules = tuple(layer.qra_shards.make_modules(buffers))
            layer.qra_forwards = tuple(
                module.make_forward() if isinstance(module, TrellisLinear) else module
                for module in layer.qra_modules
            )

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        given = torch.ops.qra.linear(x, layer.qra_key, layer.qra_out)
        return given if bias is None else given + bias

    def embedding(self, layer: Any, input_: Tensor) -> Tensor:
        return torch.ops.qra.rows(input_, layer.qra_key, layer.embedding_dim, layer.weight.dtype)


def _register_layer(name: str, layer: nn.Module) -> str:
    """A name for a layer that is the same whenever the same models are loaded in the same order."""
    names = (name, *(f"{name}#{number}" for number in range(2, len(_layers) + 3)))
    key = next(free for free in names if free not in _layers)
    _layers[key] = layer
    return key


def _load(
    shards: Shards, key: str, buffer: nn.Parameter, tensor: Tensor, shard: int | str | None = None
) -> None:
    """vLLM's loader of a parameter; it tells the shard by the tensor, or by an argument in releases before."""
    told: Any = getattr(tensor, "shard_id", shard)
    shards.copy_shard(buffer.data, key, QKV.get(told, told) or 0, tensor)


@torch.library.custom_op("qra::linear", mutates_args=())
def _apply_linear(x: Tensor, key: str, out_features: int) -> Tensor:
    """x (..., in) times the weights of a layer, (..., out): a few inputs straight from the codes."""
    layer: Any = _layers[key]
    with torch.no_grad():
        products = [forward(x) for forward in layer.qra_forwards]
    return torch.cat(products, dim=-1) if len(products) > 1 else products[0]


@_apply_linear.register_fake
def _(x: Tensor, key: str, out_features: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


@torch.library.custom_op("qra::rows", mutates_args=())
def _look_up_rows(at: Tensor, key: str, width: int, dtype: torch.dtype) -> Tensor:
    """Rows (..., width) of a table by index (...); no others are decoded."""
    layer: Any = _layers[key]
    (module,) = layer.qra_modules
    if type(module) is nn.Linear:
        return F.embedding(at, module.weight)
    return layer.qra_shards.layout.backend.dequantize_rows(module, at.flatten()).view(*at.shape, width)


@_look_up_rows.register_fake
def _(at: Tensor, key: str, width: int, dtype: torch.dtype) -> Tensor:
    return at.new_empty(*at.shape, width, dtype=dtype)
