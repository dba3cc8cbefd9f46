"""A model run layer by layer computes what it computes as a whole."""

from __future__ import annotations

import pytest
import torch
from tiny_families import tiny_config_model

from qra_eval.models.linears import find_decoder_layers
from qra_eval.quantized.blocks import Blocks
from qra_eval.tasks.batches import collate, compute_logits, wrap_head
from qra_eval.tasks.encoding import Encoded

CPU = torch.device("cpu")
FAMILIES = ["llama", "qwen3", "mistral", "gemma3", "phi", "gpt2", "opt", "gpt_neox", "mixtral", "qwen3_moe"]


def batch():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(2, 300, (length,), generator=generator) for length in (9, 14)]
    return collate([Encoded(ids, ids) for ids in rows])


def whole(model):
    with torch.no_grad(), wrap_head(model.eval()) as head:
        return compute_logits(model, head, batch())


def layer_by_layer(blocks):
    with torch.no_grad(), blocks.cast_outer_modules():
        flow = blocks.embed_batch(batch())
        for layer in range(len(blocks)):
            with blocks.place_layer(layer):
                blocks.advance_flow(layer, flow)
        return blocks.compute_logits(flow, flow.hidden)


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_by_layer_is_the_whole_pass(family):
    model = tiny_config_model(family)
    blocks = Blocks(model, CPU, model.dtype)
    expected = whole(model)
    assert torch.equal(layer_by_layer(blocks), expected)
    with blocks.stream_layers():
        assert torch.equal(whole(model), expected)
    assert not any("forward" in vars(layer) for layer in blocks.layers)


def test_the_arithmetic_may_be_wider_than_what_is_stored_and_the_weights_are_the_very_same_afterwards():
    model = tiny_config_model("llama").bfloat16()
    kept = {name: (t.data_ptr(), t.dtype) for name, t in model.named_parameters()}
    blocks = Blocks(model, CPU, torch.float32)
    found = layer_by_layer(blocks)
    with blocks.stream_layers():
        assert torch.equal(whole(model), found)
    assert found.dtype == torch.float32
    assert {name: (t.data_ptr(), t.dtype) for name, t in model.named_parameters()} == kept
    torch.testing.assert_close(found, whole(model.float()))


def test_the_gradient_at_a_layers_input_is_that_of_the_whole_model():
    model = tiny_config_model("llama").requires_grad_(False)
    layers = model.get_submodule(find_decoder_layers(model))
    seen = []

    def watch(module, args):
        seen.append(args[0].requires_grad_(True))
        return (seen[-1], *args[1:])

    handle = layers[0].register_forward_pre_hook(watch)
    with wrap_head(model) as head:
        compute_logits(model, head, batch()).square().sum().backward()
    handle.remove()
    blocks = Blocks(model, CPU, model.dtype)
    flow = blocks.embed_batch(batch())
    start = flow.hidden.clone().requires_grad_(True)
    hidden = start
    for layer in range(len(blocks)):
        hidden = blocks.run_layer(layer, flow, hidden)
    blocks.compute_logits(flow, hidden).square().sum().backward()
    torch.testing.assert_close(start.grad, seen[0].grad)
