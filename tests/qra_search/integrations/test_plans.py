"""Plans of other tools land in a space, or are refused with what is missing."""

from __future__ import annotations

import json

import pytest

from qra_search import plugins
from qra_search.integrations.plans import import_plan
from qra_search.space.serialization import plan_to_dict
from qra_search.space.space import Group, Linear, Plan, SearchSpace

KINDS = ("q_proj", "k_proj", "o_proj")


def space(granularity: str = "module", bits=(2, 3, 4, 8), ranks=(4, 8)) -> SearchSpace:
    """Two layers of three linears; o_proj has three times the weights of the others."""
    groups = []
    for layer in range(2):
        linears = [
            Linear(name=f"model.layers.{layer}.self_attn.{k}", out_features=8, in_features=24 if k == "o_proj" else 8)
            for k in KINDS
        ]
        if granularity == "layer":
            groups.append(Group(name=f"model.layers.{layer}", linears=tuple(linears)))
        else:
            groups += [Group(name=linear.name, linears=(linear,)) for linear in linears]
    return SearchSpace(groups=tuple(groups), bits=bits, ranks=ranks)


def write(tmp_path, content):
    file = tmp_path / "file"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def by_name(bits) -> dict[str, int]:
    names = [f"model.layers.{layer}.self_attn.{kind}" for layer in range(2) for kind in KINDS]
    return dict(zip(names, bits, strict=True))


def test_the_formats_are_those_of_the_documentation():
    assert set(plugins.names("importers")) == {"autoround", "gguf", "plan"}


def test_a_name_may_have_its_bits_alone_and_ranks_are_the_smallest_or_given(tmp_path):
    file = write(tmp_path, by_name([2, 3, 4, 8, 2, 3]))
    assert import_plan(file, "autoround", space()).plan == Plan((2, 3, 4, 8, 2, 3), (4,) * 6)
    assert import_plan(file, "autoround", space(), rank=8).plan.ranks == (8,) * 6


def test_bits_that_are_not_allowed_become_the_nearest_that_are_and_this_is_said(tmp_path):
    found = import_plan(write(tmp_path, by_name([5, 6, 7, 1, 16, 3])), "autoround", space())
    assert found.plan.bits == (4, 8, 8, 2, 8, 3)
    assert "5 groups have bits that are not allowed here" in found.notes[0] and "5 bits, now 4" in found.notes[0]


def test_linears_that_share_a_group_here_get_the_nearest_to_their_mean_by_weights(tmp_path):
    """(8·8·2 + 8·8·2 + 24·8·4) / (40·8) = 3.2 bits."""
    found = import_plan(write(tmp_path, by_name([2, 2, 4, 3, 3, 3])), "autoround", space("layer"))
    assert found.plan.bits == (3, 3) and "layers.0: 2, 4 bits, now 3" in found.notes[0]


def test_missing_linears_and_ranks_that_are_not_there_are_refused(tmp_path):
    file = write(tmp_path, {"model.layers.0.self_attn.q_proj": 2})
    with pytest.raises(ValueError, match="says nothing of 5 linears"):
        import_plan(file, "autoround", space())
    with pytest.raises(ValueError, match="has ranks 4, 8, not 7"):
        import_plan(write(tmp_path, by_name([2] * 6)), "autoround", space(), rank=7)


def plan_of(*names: str) -> dict:
    """A plan of 2 bits and rank 4 for linears of these names."""
    groups = tuple(Group(name=n, linears=(Linear(name=n, out_features=8, in_features=8),)) for n in names)
    searched = SearchSpace(groups=groups, bits=(2,), ranks=(4,))
    return plan_to_dict(searched, searched.uniform(2, 4))


def test_a_plan_that_names_more_than_is_searched_says_what_is_left_out(tmp_path):
    file = write(tmp_path, plan_of(*by_name([2] * 6), "lm_head"))
    found = import_plan(file, "plan", space())
    assert found.plan == Plan((2,) * 6, (4,) * 6)
    assert any("1 of the file's entries are not searched here, such as lm_head" in n for n in found.notes)


def test_a_plan_of_another_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="another model.*h.0.attn"):
        import_plan(write(tmp_path, plan_of("h.0.attn")), "plan", space())


def test_autoround_names_parts_of_names_and_patterns(tmp_path):
    layers = {
        "model.layers.0.self_attn.q_proj": {"bits": 8, "group_size": 64},
        "q_proj": {"bits": 3},
        "k_proj": {"bits": 2},
        r".*\.o_proj": {"bits": 4},
    }
    assert import_plan(write(tmp_path, layers), "autoround", space()).plan.bits == (8, 2, 4, 3, 2, 4)


def test_autoround_reads_the_config_of_a_quantized_model(tmp_path):
    config = {
        "quantization_config": {
            "quant_method": "auto-round",
            "bits": 4,
            "extra_config": {"model.layers.1.self_attn.o_proj": {"bits": 8}},
        }
    }
    assert import_plan(write(tmp_path, config), "autoround", space()).plan.bits == (4, 4, 4, 4, 4, 8)


def test_a_plan_of_another_granularity_keeps_its_ranks(tmp_path):
    fine = space()
    data = plan_to_dict(fine, Plan((3,) * 3 + (4,) * 3, (8, 4, 4, 4, 4, 4)))
    assert import_plan(write(tmp_path, data), "plan", space("layer")).plan == Plan((3, 4), (8, 4))


def test_what_is_no_json_or_no_pattern_is_told(tmp_path):
    with pytest.raises(ValueError, match="is not JSON"):
        import_plan(write(tmp_path, "a: b"), "autoround", space())
    with pytest.raises(ValueError, match="no regular expression"):
        import_plan(write(tmp_path, {"(": {"bits": 4}}), "autoround", space())
    with pytest.raises(ValueError, match="does not exist"):
        import_plan(tmp_path / "nothing", "plan", space())
