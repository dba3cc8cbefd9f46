"""A pass that begins at a layer predicts what a whole one does."""

from __future__ import annotations

import pytest
import torch
from tiny_families import tiny_config_model

from qra_eval.models.linears import decoder_layers
from qra_eval.prior.layer_cache import LayerCache
from qra_eval.tasks.batches import collate
from qra_eval.tasks.encoding import Encoded


def batch():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(2, 300, (length,), generator=generator) for length in (9, 14)]
    return collate([Encoded(ids, ids) for ids in rows])


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "gpt_neox", "opt", "mixtral"])
def test_a_pass_from_the_changed_layer_is_the_whole_pass(family):
    model = tiny_config_model(family, layers=3) if family != "gpt2" else tiny_config_model(family, n_layer=3)
    cache = LayerCache(model, batch())
    assert cache.layers == 3 and cache.divergence(2) == 0.0
    layer = model.get_submodule(decoder_layers(model))[1]
    linear = next(m for m in layer.modules() if isinstance(m, torch.nn.Linear))
    linear.weight.data *= 1.5
    whole = cache.log_probabilities(None)
    assert not torch.equal(whole, cache.reference)
    assert torch.equal(cache.log_probabilities(1), whole) and torch.equal(cache.log_probabilities(0), whole)
    assert torch.equal(cache.log_probabilities(2), cache.reference)  # too late: the change is left out
    expected = torch.nn.functional.kl_div(whole, cache.reference, log_target=True, reduction="batchmean")
    assert cache.divergence(1) == pytest.approx(float(expected), rel=1e-3, abs=1e-6)


def test_layers_that_are_left_out_are_not_computed_and_none_stays_changed():
    model = tiny_config_model("llama", layers=4)
    cache = LayerCache(model, batch())
    layers, seen = model.get_submodule(decoder_layers(model)), []
    for n, layer in enumerate(layers):
        layer.self_attn.register_forward_hook(lambda module, args, output, n=n: seen.append(n))
    cache.log_probabilities(3)
    assert seen == [3] and cache.share(3) == 0.25 and cache.share(None) == 1.0
    assert not any("forward" in vars(layer) for layer in layers)
