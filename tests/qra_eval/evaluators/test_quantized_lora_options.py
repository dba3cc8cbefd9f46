"""What can be chosen of an evaluation: where adapters start, when it is cut short, cheaper scores, less memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluators import make_evaluator, mixed_plan
from safetensors.torch import load_file
from tiny_families import save_tiny

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search import Run
from qra_search.app.config import make_config
from qra_search.errors import BadInput
from qra_search.sections import QuantizationConfig, SpaceConfig


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank")

    def make(
        backend="reference", bits=(2, 4), cache=folder, dequantized_cache="auto", evaluation=None, **training
    ):
        return make_evaluator(
            "tiny",
            "arithmetic",
            quantization=QuantizationConfig(backend=backend, embeddings=16, cache=str(cache)),
            space=SpaceConfig(bits=bits, ranks=(0, 4, 8)),
            training={"batch_size": 4, **training},
            evaluation={"steps": 4, "validation_rows": 8, **(evaluation or {})},
            finetune={"steps": 6, "test_rows": 8},
            dequantized_cache=dequantized_cache,
        )

    return make


@pytest.mark.parametrize("cache", ["auto", 0])
def test_scales_are_trained_saved_and_leave_the_bank_as_it_was(build, tmp_path, cache):
    frozen = build(bits=(2, 4, 16))
    evaluator = build(bits=(2, 4, 16), scales=True, dequantized_cache=cache)
    plan = mixed_plan(evaluator.space)
    bank = evaluator.quantized_model.bank
    evaluator.tuner.switcher.quantize_plan(plan)
    files = {path: path.read_bytes() for path in bank.folder.glob("*.safetensors")}
    loss = evaluator.evaluate(plan).loss
    assert loss != frozen.evaluate(plan).loss and evaluator.evaluate(plan).loss == loss
    tuned = evaluator.tune(plan, steps=2, folder=tmp_path)
    assert tuned.memory_bytes == frozen.space.memory_bytes(plan)
    saved = load_file(tmp_path / "quantized.safetensors")
    for name, bits in (
        (m.name, b) for g, b in zip(evaluator.space.groups, plan.bits, strict=True) for m in g.linears
    ):
        if bits != 16:
            own = bank.load_tensors(name, bits)
            assert torch.equal(saved[f"{name}::codes"], own["codes"])
            assert not torch.equal(saved[f"{name}::scale"], own["scale"])
    assert files == {path: path.read_bytes() for path in bank.folder.glob("*.safetensors")}
    assert frozen.evaluate(plan).loss != evaluator.evaluate(plan).loss == loss


def test_only_scales_of_whole_rows_are_trained_if_nothing_is_said(build):
    numbers = {}
    for scales in ("auto", True, False):
        model = build(
            {2: {"name": "trellis", "L": 10}, 4: "reference"}, bits=(2, 4, 16), scales=scales
        ).quantized_model
        numbers[scales] = [model.count_trained(bits, 64, 128) for bits in (2, 4, 16)]
    assert numbers == {"auto": [64, 0, 0], True: [64, 64 * 2 * 2, 0], False: [0, 0, 0]}


def test_low_fidelity_sees_the_first_batches_and_rows_of_a_full_evaluation(build):
    evaluator = build()
    full, half = evaluator.tuner.get_batches(4, 3), evaluator.tuner.get_batches(2, 3)
    assert [b.input_ids.tolist() for b in full[:2]] == [b.input_ids.tolist() for b in half]
    assert all(
        torch.equal(a.input_ids, b.input_ids)
        for a, b in zip(evaluator.rows("validation", 2), evaluator.rows("validation", 8), strict=False)
    )
    assert evaluator.tuner.get_batches(0, 3) == []


def test_gradient_checkpointing_changes_memory_and_not_the_loss(build):
    plain, sparing = build(), build(gradient_checkpointing=True)
    plan = plain.space.uniform(4, 8)
    assert sparing.evaluate(plan).loss == pytest.approx(plain.evaluate(plan).loss, abs=1e-4)
    assert saved_by_a_forward_pass(sparing, plan) < 0.7 * saved_by_a_forward_pass(plain, plan)


def saved_by_a_forward_pass(evaluator, plan):
    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    evaluator.tuner.switcher.put_plan(plan, 0)
    evaluator.tuner.model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = evaluator.tuner.model(input_ids=torch.arange(256).view(2, 128), use_cache=False)
    evaluator.tuner.model.eval()
    assert kept.logits.requires_grad
    return sum(seen.values())


def test_rows_are_no_longer_than_a_table_of_positions(tmp_path):
    save_tiny("gpt2", tmp_path, max_position_embeddings=64)

    def build(max_length):
        return make_evaluator(
            str(tmp_path),
            space={"bits": (4,), "ranks": (4,)},
            quantization={"cache": str(tmp_path / "bank")},
            training={"max_length": max_length},
        )

    with pytest.raises(BadInput, match=f"max_length is 65: {tmp_path} supports at most 64 tokens"):
        build(65)
    bench = build(64).tuner
    assert bench.compute_max_length(64) == 64
    assert make_evaluator("tiny", training={"max_length": 100}).tuner.compute_max_length(64) == 164


SECTIONS: dict[str, Any] = {
    "quantization": {"backend": "reference", "embeddings": 16},
    "space": {"bits": (2, 4), "ranks": (4, 8)},
    "training": {"batch_size": 4, "learning_rate": 0.002},
    "evaluation": {"steps": 4, "validation_rows": 8},
    "finetune": {"steps": 2, "test_rows": 8, "sample_answers": 0, "scored_rows": 0},
}
SEARCHED = {**SECTIONS["space"], "learning_rates": (0.016, 0.004), "lengths": (0.5,)}


@pytest.fixture(scope="module")
def evaluator() -> QuantizedLoRAEvaluator:
    return make_evaluator(**{**SECTIONS, "space": SEARCHED})


def test_the_settings_own_rate_and_length_are_among_the_choices(evaluator: QuantizedLoRAEvaluator) -> None:
    rate, length = evaluator.space.extra["learning_rate"], evaluator.space.extra["length"]
    assert (rate.values, rate.default) == ((0.002, 0.004, 0.016), 0.002)
    assert (length.values, length.default) == ((0.5, 1.0), 1.0)


def test_a_plans_rate_is_that_of_the_settings_to_the_bit(evaluator: QuantizedLoRAEvaluator) -> None:
    plan = evaluator.space.without_extra.uniform(2, 8)
    faster = make_evaluator(**{**SECTIONS, "training": {"batch_size": 4, "learning_rate": 0.016}})
    with_rate = replace(plan, extra=(("learning_rate", 0.016),))
    losses = [evaluator.evaluate(p).loss for p in (plan, with_rate, plan)]
    assert losses[0] == losses[2] != losses[1] == faster.evaluate(plan).loss


def test_a_plans_length_cuts_the_steps_and_leaves_the_rows(evaluator: QuantizedLoRAEvaluator) -> None:
    plan = evaluator.space.without_extra.uniform(2, 8)
    short, half = (
        evaluator.evaluate(replace(plan, extra=(("length", 0.5),))),
        evaluator.evaluate(plan, fidelity=0.5),
    )
    assert short.metrics["train_loss"] == half.metrics["train_loss"]
    assert short.metrics["trained_tokens"] == half.metrics["trained_tokens"]
    assert short.loss != half.loss  # of twice as many validation rows


def make_run(folder: Path, strategy: str) -> Run:
    sections = {**SECTIONS, "space": SEARCHED, "model": {"name": "tiny"}, "task": {"name": "arithmetic"}}
    return Run(
        folder,
        make_config({**sections, "search": {"strategy": strategy, "evaluations": 5, "memory": "uniform4r8"}}),
    )


def test_a_run_searches_them_and_tunes_the_plan_at_the_settings_rate(tmp_path: Path) -> None:
    with make_run(tmp_path / "run", "random") as run:
        run.search(progress=False)
        tried = {trial.plan.extra for trial in run.result.trials}
        assert len({dict(extra).get("learning_rate") for extra in tried}) > 1
        assert run.result.spent == sum(trial.plan.length for trial in run.result.trials) >= 5
        assert run.plan.extra == ()
        comparison = run.finetune(progress=False)
        assert {record.learning_rate for tuned in comparison.tunings for record in tuned.records} == {
            0.002,
            None,
        }  # None: the untuned model


def test_a_strategy_that_does_not_search_them_is_refused(tmp_path: Path) -> None:
    with (
        make_run(tmp_path / "run", "qra") as run,
        pytest.raises(
            BadInput, match="'qra' does not search learning_rate and length: choose random, nsga2 or bayes"
        ),
    ):
        run.search(progress=False)
