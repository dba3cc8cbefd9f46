"""The real evaluator: exact bytes, the same loss from the same seed, searches that end in a loadable adapter."""

from __future__ import annotations

import json

import pytest
import torch
from evaluators import make_evaluator, measure_reload, mixed_plan
from safetensors.torch import load_file, save_file

from qra_eval.quantized.bank import count_tensor_bytes
from qra_eval.quantized.space import ADAPTER_DTYPE
from qra_eval.tuning.loading import load, load_base
from qra_search.errors import BadInput
from qra_search.sections import QuantizationConfig, SpaceConfig

TRELLIS = {2: "trellis", 3: "trellis", 4: "trellis", 8: "reference"}
BACKENDS = ["reference", "reference-gptq", "mixed", "bitsandbytes", TRELLIS]


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank")

    def make(
        backend="reference",
        bits=(2, 3, 4, 8),
        ranks=(0, 4, 8),
        granularity="module",
        compute="auto",
        dequantized_cache="auto",
        **options,
    ):
        return make_evaluator(
            "tiny",
            "arithmetic",
            quantization=QuantizationConfig(backend=backend, embeddings=16, cache=str(folder)),
            space=SpaceConfig(bits=bits, ranks=ranks, granularity=granularity),
            training={"batch_size": 4, **options},
            evaluation={"steps": 4, "validation_rows": 8},
            finetune={"steps": 6, "test_rows": 8},
            compute=compute,
            dequantized_cache=dequantized_cache,
        )

    return make


@pytest.fixture(scope="module")
def evaluator(build):
    return build()


def test_the_same_seed_gives_the_same_loss_after_other_plans(evaluator):
    plan = mixed_plan(evaluator.space)
    first = evaluator.evaluate(plan, seed=1).loss
    evaluator.evaluate(evaluator.space.uniform(2, 8))
    assert evaluator.evaluate(plan, seed=1).loss == first
    assert evaluator.evaluate(plan, seed=2).loss != first


def test_a_model_too_large_for_dequantized_weights_computes_as_before_after_the_sensitivities(tmp_path):
    large = make_evaluator(
        "tiny",
        quantization=QuantizationConfig(backend="reference", embeddings=16, cache=str(tmp_path)),
        space=SpaceConfig(bits=(2, 4), ranks=(4,)),
        training={"batch_size": 2},
        evaluation={"steps": 1, "validation_rows": 2},
        dequantized_cache=100_000,
    )
    assert not large.quantized_model.keeps_dequantized
    plan = large.space.uniform(2, 4)
    before = large.evaluate(plan).loss
    large.sensitivities()
    assert large.evaluate(plan).loss == before


def test_the_fast_path_gives_the_loss_of_the_quantized_modules(build):
    evaluator = build(compute="bfloat16")
    plan = mixed_plan(evaluator.space)
    evaluator.tuner.switcher.put_plan(plan, 0)
    fast = evaluator.tuner.measure_loss("validation", 8)
    evaluator.quantized_model.keeps_dequantized = False
    evaluator.tuner.switcher.put_plan(plan, 0)
    assert evaluator.tuner.measure_loss("validation", 8) == fast
    on_modules = evaluator.evaluate(plan).loss
    evaluator.quantized_model.keeps_dequantized = True
    # Trained on modules, the same sums are taken in another order and rounded to bfloat16 in between.
    assert evaluator.evaluate(plan).loss == pytest.approx(on_modules, rel=2e-3)


@pytest.mark.parametrize("compute", ["auto", "bfloat16"])
def test_a_model_kept_in_float32_has_all_its_digits_after_tuning_where_bfloat16_is_faster(
    compute, tmp_path, monkeypatch
):
    monkeypatch.setattr("qra_eval.quantized.model.choose_compute_dtype", lambda device: torch.bfloat16)
    evaluator = make_evaluator(
        "tiny",
        quantization=QuantizationConfig(backend="reference", embeddings=16, cache=str(tmp_path / "bank")),
        space=SpaceConfig(bits=(3, 16), ranks=(4,)),
        training={"batch_size": 2},
        finetune={"test_rows": 2},
        dtype="float32",
        compute=compute,
    )
    before = {name: tensor.clone() for name, tensor in evaluator.tuner.model.named_buffers()}
    embedding = evaluator.tuner.model.get_input_embeddings().weight.detach().clone()
    tuned = evaluator.tune(evaluator.space.uniform(3, 4), steps=1, folder=tmp_path / "run")
    assert evaluator.quantized_model.compute == (torch.bfloat16 if compute == "bfloat16" else torch.float32)
    assert measure_reload(evaluator, tuned.plan, tmp_path / "run") == 0
    model = evaluator.tuner.model
    assert torch.equal(model.get_input_embeddings().weight, embedding)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers() if name in before)


@pytest.mark.parametrize(
    ("backend", "granularity"), [*((backend, "module") for backend in BACKENDS), ("reference", "layer")]
)
def test_predicted_bytes_are_those_of_every_tensor_of_the_live_model(build, backend, granularity, tmp_path):
    bits = (4, 8) if backend == "bitsandbytes" else (2, 3, 4, 8)
    evaluator = build(backend, bits=bits, granularity=granularity)
    plan = mixed_plan(evaluator.space)
    evaluator.tune(plan, steps=1, folder=tmp_path)
    model, _ = load(tmp_path)
    quantized = 0
    for group in evaluator.space.groups:
        for linear in group.linears:
            wrapper = model.get_base_model().get_submodule(linear.name)
            module = getattr(wrapper, "base_layer", wrapper)
            quantized += sum(t.nbytes for t in evaluator.quantized_model.backend.to_tensors(module).values())
            for name, _ in list(module.named_parameters(recurse=False)) + list(
                module.named_buffers(recurse=False)
            ):
                if name != "bias":
                    delattr(module, name) if name not in module._parameters else module._parameters.pop(name)
    # What is left after the quantized tensors are taken out: adapters, and everything that is not searched.
    assert quantized + count_tensor_bytes(model) == evaluator.space.memory_bytes(plan)
    adapter = sum(p.nbytes for n, p in model.named_parameters() if ".lora_" in n)
    expected = sum(
        rank * (m.in_features + m.out_features) * ADAPTER_DTYPE.itemsize
        for group, rank in zip(evaluator.space.groups, plan.ranks, strict=True)
        for m in group.linears
    )
    assert adapter == expected


def test_a_tuned_plan_reloads_to_the_same_logits(build, tmp_path):
    evaluator = build("mixed")
    plan = mixed_plan(evaluator.space)
    evaluator.tune(plan, steps=6, folder=tmp_path)
    assert measure_reload(evaluator, plan, tmp_path) == 0
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] in (4, 8) and config["rank_pattern"]
    assert config["lora_alpha"] == evaluator.quantized_model.settings.alpha and not config["alpha_pattern"]
    assert {
        w.scaling * len(w.lora_A) for w in evaluator.tuner.switcher.wrapped.values() if w.lora_A is not None
    } == {evaluator.quantized_model.settings.alpha}
    base, _ = load_base(tmp_path)
    ids = evaluator.rows("test", 1)[0].input_ids.unsqueeze(0)
    with torch.no_grad():
        assert not torch.equal(base(ids).logits, load(tmp_path)[0](ids).logits)


def test_a_tuned_plan_that_lacks_something_is_refused_by_name(build, tmp_path):
    evaluator = build("mixed")
    evaluator.tune(mixed_plan(evaluator.space), steps=1, folder=tmp_path)
    names = ("plan.json", "quantized.safetensors", "adapter/adapter_model.safetensors")
    plan, base, factors = (tmp_path / name for name in names)
    data, tensors = json.loads(plan.read_text()), load_file(base)
    lost = next(iter(tensors)).rpartition("::")[0]
    save_file({name: tensor for name, tensor in tensors.items() if not name.startswith(lost)}, base)
    with pytest.raises(BadInput, match=f"lacks the tensors of {lost}"):
        load(tmp_path)
    save_file(tensors, base)
    plan.write_text(json.dumps({name: data[name] for name in data.keys() - {"dtype"}}))
    with pytest.raises(BadInput, match="has no tuned plan"):
        load(tmp_path)
    plan.write_text(json.dumps(data))
    torch.save({}, factors.with_suffix(".bin"))  # which is no format that is read
    factors.unlink()
    with pytest.raises(BadInput, match="lacks adapter_model.safetensors"):
        load(tmp_path)


def test_other_weights_than_the_plans_are_refused(build, tmp_path):
    evaluator = build()
    evaluator.tune(mixed_plan(evaluator.space), steps=1, folder=tmp_path)
    data = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps(data | {"weights": "0000"}))
    with pytest.raises(ValueError, match="weights of .*tiny .* are not those the plan was made for .0000."):
        load(tmp_path)
