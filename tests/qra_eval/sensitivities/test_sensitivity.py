"""The sensitivities point where degrading really hurts."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import torch
from evaluators import make_evaluator

from qra_eval.models.load import load_model
from qra_eval.quantized import build, model
from qra_eval.sensitivities import cache, measure
from qra_eval.sensitivities.measure import (
    MANY_PROBES,
    PROBED_BITS,
    PROBED_DEPTHS,
    choose_probes,
    scale_damage,
)
from qra_search.space.serialization import check_sensitivities
from qra_search.testing.scenarios import make_toy_space


def test_probes_on_a_power_law_of_the_size_are_met_exactly():
    rng = np.random.default_rng(0)
    raw = np.exp(rng.normal(size=(12, 3)))
    truth = 0.3 * raw * np.exp(0.4 * np.log(raw).mean(1, keepdims=True))
    probes = [(g, raw[g, k], truth[g, k]) for g in range(0, 12, 2) for k in range(3)]
    assert scale_damage(raw, ["x"] * 12, probes) == pytest.approx(truth, rel=1e-3)


def test_levels_of_a_group_differ_as_their_figures_do_although_large_groups_suffer_less_than_theirs():
    """Groups were probed at 1.5 and 2 bits, one level each: their slope says nothing of 4 bits."""
    rng = np.random.default_rng(2)
    size, levels = np.exp(rng.normal(size=(21, 1)) * 1.5), np.array([[9.0, 4.0, 1.8, 0.2]])
    raw, truth = size * levels, size**0.8 * levels
    probes = [(g, raw[g, g % 2], truth[g, g % 2] * np.exp(rng.normal() * 0.1)) for g in range(21)]
    ratio = scale_damage(raw, ["x"] * 21, probes) / truth
    assert 0.8 < ratio[:, 3].mean() < 1.25 and 0.9 < ratio[:, :2].mean() < 1.1


def test_levels_that_probes_show_to_differ_less_than_their_figures_are_believed():
    """Round-to-nearest at 2 bits ruins a model: what is lost no longer grows with the figure."""
    raw = np.exp(np.random.default_rng(3).normal(size=(21, 1))) * np.array([[40.0, 1.0]])
    truth = raw * np.array([[0.2, 1.0]])
    found = scale_damage(raw, ["x"] * 21, [(g, raw[g, k], truth[g, k]) for g in range(21) for k in range(2)])
    assert np.median(found[:, 0] / found[:, 1]) < 12.0  # 8 is the truth, 40 the figures'


def test_a_kind_that_suffers_more_gets_an_intercept_of_its_own():
    rng = np.random.default_rng(1)
    raw = np.exp(rng.normal(size=(40, 2)))
    kinds = ["v" if i % 2 else "gate" for i in range(40)]
    truth = raw * np.where(np.array(kinds) == "v", 8.0, 1.0)[:, None]
    probes = [(g, raw[g, k], truth[g, k]) for g in range(16) for k in range(2)]
    found = scale_damage(raw, kinds, probes)
    ratio = np.exp(np.log(found[1::2] / truth[1::2]).mean() - np.log(found[::2] / truth[::2]).mean())
    assert 0.8 < ratio < 1.25


def test_groups_of_few_kinds_are_probed_at_each_of_their_lowest_bits_those_of_many_at_one_in_turn():
    few, many = (make_toy_space(9, granularity, table=True) for granularity in ("layer", "module"))
    assert choose_probes(few) == [(g, k) for g in (0, 4, 8) for k in range(PROBED_BITS)]
    kinds = {group.kind for group in many.groups if not group.is_embedding}
    chosen = choose_probes(many)
    assert len(chosen) == PROBED_DEPTHS * len(kinds) < MANY_PROBES < PROBED_BITS * len(chosen)
    assert len({g for g, _ in chosen}) == len(chosen) and not any(
        many.groups[g].is_embedding for g, _ in chosen
    )
    for kind in kinds:
        assert {k for g, k in chosen if many.groups[g].kind == kind} == set(range(PROBED_BITS))


def tiny_evaluator(cache, model="tiny", **options):
    return make_evaluator(
        model,
        "arithmetic",
        quantization={"backend": "reference", "embeddings": 16, "cache": str(cache)},
        space={"bits": (2, 3, 4, 16), "ranks": (0, 4, 8)},
        training={"batch_size": 4},
        evaluation={"steps": 2, "validation_rows": 8},
        finetune={"test_rows": 4},
        **options,
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    evaluator = tiny_evaluator(tmp_path_factory.mktemp("bank"))
    return evaluator, evaluator.sensitivities()


def test_damage_falls_with_bits_gain_rises_with_rank_and_the_model_is_left_as_it_was(measured):
    evaluator, sensitivities = measured
    check_sensitivities(evaluator.space, sensitivities)
    damage, gain = sensitivities.bits_damage, sensitivities.rank_gain
    assert (np.diff(damage, axis=1) <= 0).all() and (damage[:, 0] > 0).all() and not damage[:, -1].any()
    assert not gain[:, 0].any() and (np.diff(gain, axis=1) > 0).all()
    wrapped = evaluator.tuner.switcher.wrapped.values()
    assert all(w.lora_A is None and not w._backward_hooks and not w._forward_pre_hooks for w in wrapped)


def test_figures_follow_the_divergence_of_degraded_groups_and_cost_what_is_foretold(tmp_path, monkeypatch):
    pairs = []

    def scale(raw, kinds, probes):
        pairs.extend((figure, kl) for _, figure, kl in probes)
        return scale_damage(raw, kinds, probes)

    monkeypatch.setattr(measure, "scale_damage", scale)
    evaluator = tiny_evaluator(tmp_path)
    assert evaluator.sensitivities().cost == pytest.approx(evaluator.sensitivity_cost(), rel=0.3)
    assert np.corrcoef(np.log(pairs), rowvar=False)[0, 1] > 0.8


def test_sensitivities_are_stored_by_content_and_charged_as_measured(measured, monkeypatch):
    evaluator, sensitivities = measured
    monkeypatch.setattr(cache, "measure_sensitivities", lambda *_: pytest.fail("it was measured again"))
    assert evaluator.sensitivities().to_dict() == sensitivities.to_dict()
    assert evaluator.estimate_search_cost()["sensitivities_seconds"] == 0.0
    cache.get_sensitivities_file(evaluator.tuner).write_text("{")  # a damaged file holds none
    monkeypatch.setattr(cache, "measure_sensitivities", lambda *_: sensitivities)
    assert (
        evaluator.sensitivities().to_dict() == sensitivities.to_dict()
        and cache.get_sensitivities_file(evaluator.tuner).stat().st_size > 100
    )


def test_the_same_weights_under_a_config_that_computes_otherwise_have_other_codes_and_another_prior(tmp_path):
    def names(folder):
        made = tiny_evaluator(tmp_path / "bank", model=str(folder))
        return made.quantized_model.identity, cache.get_sensitivities_file(made.tuner).name

    first, second = tmp_path / "first", tmp_path / "second"
    loaded = load_model("tiny")
    for folder in (first, second):
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    config = json.loads((second / "config.json").read_text())
    before = names(first)
    (second / "config.json").write_text(json.dumps({**config, "use_cache": not config["use_cache"]}))
    assert names(second) == before
    config["rope_parameters"]["rope_theta"] *= 2
    (second / "config.json").write_text(json.dumps(config))
    after = names(second)
    assert after[0] != before[0] and after[1] != before[1]


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_half_precision_does_not_drown_small_damage(tmp_path, dtype):
    """One group's damage at 4 bits is below the rounding of a whole pass in bfloat16."""
    wide, narrow = (tiny_evaluator(tmp_path, dtype=dtype, compute=c) for c in ("float32", "bfloat16"))
    assert narrow.quantized_model.compute == torch.bfloat16 != wide.quantized_model.compute
    expected, found = wide.sensitivities().bits_damage[:, :3], narrow.sensitivities().bits_damage[:, :3]
    assert found == pytest.approx(expected, rel=0.1)


def test_of_two_that_need_the_same_sensitivities_at_once_one_measures(tmp_path, monkeypatch):
    both, measured, begun = [tiny_evaluator(tmp_path) for _ in range(2)], [], threading.Event()
    measure = cache.measure_sensitivities

    def count(tuner):
        measured.append(tuner)
        begun.set()
        return measure(tuner)

    monkeypatch.setattr(cache, "measure_sensitivities", count)
    first = threading.Thread(target=both[0].sensitivities)
    first.start()
    assert begun.wait(60)
    second = both[1].sensitivities()
    first.join(60)
    assert len(measured) == 1 and second.to_dict() == both[0].sensitivities().to_dict()


def test_as_many_rows_calibrate_as_have_the_tokens_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "MAX_ROWS", 1000)
    quantized = make_evaluator("tiny", "arithmetic", quantization={"cache": str(tmp_path)}).quantized_model
    rows = quantized.rows("train", model.MEASURED_ROWS)
    tokens = sum(map(len, rows))
    counts = {3 * tokens: 3 * len(rows), 1: model.MIN_ROWS, 1000 * tokens: model.MAX_ROWS}
    for asked, count in counts.items():
        given = quantized.quantization.model_copy(update={"calibration_tokens": asked})
        monkeypatch.setattr(quantized, "quantization", given)
        vars(quantized).pop("calibration_row_count", None)
        assert quantized.calibration_row_count == count


def test_codes_on_the_rows_of_the_plan_need_no_pass_of_their_own(tmp_path, monkeypatch):
    def encode(folder, *, planned):
        given = {"cache": str(tmp_path / folder), "calibration_tokens": model.PLAN_TOKENS}
        evaluator = make_evaluator("tiny", "arithmetic", quantization=given)
        quantized = evaluator.quantized_model
        plan = evaluator.space.uniform(2, 4)
        if planned:
            evaluator.sensitivities()
            monkeypatch.setattr(build, "pass_layers", lambda *given: pytest.fail("rows passed again"))
        quantized.quantize_plan(plan)
        monkeypatch.undo()
        return [quantized.bank.load_tensors(name, 2) for name in quantized.linears]

    for own, other in zip(encode("a", planned=True), encode("b", planned=False), strict=True):
        assert own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)


def test_rows_that_were_not_probed_take_the_errors_of_those_that_count_as_much():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(400, 32, generator=generator) * torch.linspace(0.5, 2.0, 400)[:, None]
    counts = torch.linspace(1.0, 9.0, 400)
    noise = torch.randn(400, 32, generator=generator) * weight.square().mean(1).sqrt()[:, None]
    degraded = weight + noise / counts[:, None]  # rows that count more lose less
    rows = measure.choose_spread_outputs(400, 6)
    extended = measure.extend_errors(weight, rows, degraded[rows], counts)
    torch.testing.assert_close(extended[rows], degraded[rows])
    errors = (extended - weight).square().mean(1), (degraded - weight).square().mean(1)
    for half in (slice(0, 200), slice(200, 400)):
        assert errors[0][half].sum() == pytest.approx(float(errors[1][half].sum()), rel=0.2)


def test_a_table_of_which_a_part_was_probed_takes_a_plan_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "TABLE_RUNS", 2)
    evaluator = make_evaluator(
        "tiny",
        "arithmetic",
        quantization={"backend": "reference", "embeddings": (2, 8), "cache": str(tmp_path)},
        space={"bits": (2, 8), "ranks": (4,)},
        compute="bfloat16",
    )
    assert evaluator.quantized_model.compute == torch.bfloat16
    space = evaluator.space
    damage = evaluator.sensitivities().bits_damage[[g.is_embedding for g in space.groups]]
    assert (damage[:, 0] > damage[:, 1]).all() and (damage[:, 1] > 0).all()
    assert np.isfinite(evaluator.evaluate(space.uniform(2, 4)).loss)
