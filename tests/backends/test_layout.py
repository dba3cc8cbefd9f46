"""Weights that vLLM runs as one matrix lie in shared buffers, at any levels, and decode to what was stored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from qra_backends.served.layout import Layout, Shards
from torch import nn

IN = 64
CHOICE = {2: "trellis", 3: "trellis", 4: "reference", 8: "bitsandbytes-int8"}
LEVELS = {"q": 2, "k": 4, "v": 8, "o": 16}
SHAPES = {"q": (40, IN), "k": (24, IN), "v": (8, IN), "o": (5, IN)}


def layout() -> Layout:
    return Layout.from_config({"quant_method": "qra", "backend": CHOICE, "levels": LEVELS})


@pytest.fixture
def stored() -> dict[str, tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """Tensors and decoded weight of each."""
    generator, backend, found = torch.Generator().manual_seed(0), layout().backend, {}
    for name, shape in SHAPES.items():
        linear = nn.Linear(IN, shape[0], bias=False, dtype=torch.bfloat16)
        linear.weight.data = torch.randn(shape, generator=generator).to(torch.bfloat16)
        if LEVELS[name] == 16:
            found[name] = {"weight": linear.weight.data.float()}, linear.weight.data  # another dtype is cast
        else:
            module = backend.quantize(linear, LEVELS[name], hessian=torch.eye(IN))
            found[name] = backend.to_tensors(module), backend.dequantize(module)
    return found


def test_shards_of_any_levels_have_the_bytes_of_their_formats_and_multiply_by_their_weights(
    stored: Any,
) -> None:
    ours = layout()
    shards = Shards(ours, SHAPES, torch.bfloat16)
    buffers = {key: torch.empty(count, dtype=dtype) for key, (count, dtype) in shards.buffers.items()}
    for i, (tensors, _) in enumerate(stored.values()):
        for key, tensor in tensors.items():
            shards.copy_shard(buffers[key], key, i, tensor)
    made = shards.make_modules(buffers)
    x = torch.randn(3, IN, generator=torch.Generator().manual_seed(1)).bfloat16()
    for (name, (_, weight)), module in zip(stored.items(), made, strict=True):
        assert torch.equal(ours.backend.dequantize(module) if name in ours.levels else module.weight, weight)
        with torch.no_grad():
            found, expected = module(x).double(), x.double() @ weight.double().T
        assert (found - expected).norm() < 5e-3 * expected.norm()
    assert made[0].codes.untyped_storage().data_ptr() == buffers["codes"].data_ptr()
    wanted = sum(ours.backend.storage(ours.levels[n]).bytes(*SHAPES[n]) for n in ours.levels) + 2 * 5 * IN
    assert 0 <= sum(buffer.nbytes for buffer in buffers.values()) - wanted < 16  # where two dtypes meet


def test_vllms_layer_of_shards_multiplies_by_their_decoded_weights(stored: Any) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from qra_backends.served.vllm_plugin import QRAConfig, QRAMethod

    method = QRAMethod(QRAConfig(layout()), list(SHAPES)[:3])
    layer, sizes = nn.Module(), [SHAPES[name][0] for name in "qkv"]
    with pytest.raises(ValueError, match="--tensor-parallel-size 1"):
        method.create_weights(layer, IN, [20, 12, 4], IN, sum(sizes), torch.bfloat16)
    method.create_weights(layer, IN, sizes, IN, sum(sizes), torch.bfloat16)
    for name in "qkv":
        for key, tensor in stored[name][0].items():
            tensor.shard_id = name
            layer.get_parameter(key).weight_loader(layer.get_parameter(key), tensor)
    method.process_weights_after_loading(layer)
    assert len(layer.qra_modules) == 3
    x, bias = torch.randn(5, IN, dtype=torch.bfloat16), torch.ones(sum(sizes), dtype=torch.bfloat16)
    wanted = torch.cat([x @ stored[name][1].T for name in "qkv"], dim=1) + bias
    found = torch.compile(method.apply, fullgraph=True, backend="eager")(layer, x, bias)
    assert torch.allclose(found, wanted, rtol=2e-2, atol=2e-2)


def test_what_is_not_of_the_layout_is_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match="q.codes of the exported model must be .*, got"):
        shards = Shards(layout(), {"q": (40, IN)}, torch.float32)
        shards.copy_shard(
            torch.empty(shards.buffers["codes"][0], dtype=torch.uint8), "codes", 0, torch.zeros(3)
        )
