"""The space of a model: what its groups are called, and which bits they have."""

from __future__ import annotations

import pytest
from evaluators import make_evaluator
from qra_backends import make_backend
from tiny_families import LAYERS, tiny_config_model

from qra_eval.models.linears import find_linears, group_linears
from qra_eval.quantized.space import make_model_space
from qra_search import search
from qra_search.sections import QuantizationConfig, SpaceConfig

KINDS = {
    "module": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "expert": {"q_proj", "k_proj", "v_proj", "o_proj", "expert"},
    "layer": {"layer"},
    "fused": {"qkv", "o_proj", "gate_up", "down_proj"},
}


@pytest.mark.parametrize("granularity", KINDS)
def test_groups_of_a_mixture_have_kinds_in_common_across_layers(granularity):
    found = find_linears(tiny_config_model("mixtral"))
    groups = group_linears(found, granularity)
    space = make_model_space(groups, granularity, SpaceConfig(), make_backend("reference"), fixed_bytes=0)
    assert {group.kind for group in space.groups} == KINDS[granularity]
    assert {group.depth for group in space.groups} == set(range(LAYERS))
    assert sum(len(group.linears) for group in space.groups) == len(found)


def test_linears_that_no_level_suits_are_named(monkeypatch):
    backend = make_backend("reference")
    monkeypatch.setattr(backend, "unsupported_reason", lambda *_: "odd rows")
    groups = group_linears(find_linears(tiny_config_model("llama")), "module")
    with pytest.raises(
        ValueError,
        match="no level of the space can store all of model.layers.0.self_attn.q_proj: choose",
    ):
        make_model_space(groups, "module", SpaceConfig(bits=(4,)), backend, fixed_bytes=0)


@pytest.mark.parametrize(
    ("backend", "bits"),
    [
        ("mixed-calibrated", (1, "trellis-1.5", 2, "trellis-2.5", 3, "trellis-3.5", 4, 5)),
        ("reference", (2, 3, 4, 5)),
        (dict.fromkeys((2, 3, 4, 8), "reference"), (2, 3, 4, 8)),
    ],
)
@pytest.mark.parametrize("memory", [(), ("90%", "5bpw")])
def test_bits_that_are_left_open_are_every_half_bit_that_the_backend_has_whatever_the_budget(
    tmp_path, backend, bits, memory
):
    evaluator = make_evaluator(
        "tiny",
        quantization=QuantizationConfig(backend=backend, cache=str(tmp_path)),
        space=SpaceConfig(ranks=(4,)),
        memory=memory,
    )
    assert evaluator.quantized_model.levels == bits
    assert set(evaluator.quantized_model.table_levels) == {*bits} - {8}
    widths = {
        evaluator.space.widths[evaluator.space.bits.index(p.bits[0])] for p in evaluator.space.uniform_plans()
    }
    assert widths == {float(str(b).removeprefix("trellis-")) for b in bits}


def make(folder, bits, backend):
    return make_evaluator(
        "tiny",
        "arithmetic",
        quantization=QuantizationConfig(backend=backend, embeddings=16, cache=str(folder)),
        space=SpaceConfig(bits=bits, ranks=(0, 4), granularity="layer"),
        training={"batch_size": 2},
        evaluation={"steps": 2, "validation_rows": 4},
        finetune={"test_rows": 4, "steps": 2},
    )


def test_sixteen_bits_alone_are_searched_over_ranks(tmp_path):
    """The LoRA that everyone compares with: nothing is quantized, so nothing is damaged, and rank is all there is."""
    evaluator = make(tmp_path, (16,), "reference")
    sensitivities = evaluator.sensitivities()
    assert (
        sensitivities.bits_damage.shape == (len(evaluator.space), 1) and not sensitivities.bits_damage.any()
    )
    assert (sensitivities.rank_gain[:, 1] > 0).all()
    result = search(evaluator, evaluations=3, seed=0)
    assert len(result.trials) >= 2 and not result.failures()
    assert {trial.plan.bits for trial in result.trials} == {(16,) * len(evaluator.space)}
    evaluator.close()
