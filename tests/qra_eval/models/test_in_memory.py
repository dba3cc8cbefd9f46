"""A model in memory is searched and tuned as the same weights from a folder are, and is left as it was to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import save_tiny, tiny_config_model

import qra_eval
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.export import export
from qra_eval.export.tuned import TunedRun
from qra_eval.models.load import check_in_memory_model, load_model
from qra_eval.models.loaded import hash_config
from qra_eval.models.tiny import byte_tokenizer, tiny_model
from qra_search.errors import BadInput
from qra_search.schemas import Plan


@pytest.fixture
def tiny() -> Any:
    """As a user has it: in training mode, with gradients allowed, and a hook of his own."""
    return tiny_model().model.train().requires_grad_(True)


def state_of(model: Any) -> dict[str, Any]:
    """All that can be seen of a model from outside."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "values": {name: tensor.detach().clone() for name, tensor in tensors},
        "places": {name: (t.data_ptr(), t.device, t.dtype, t.requires_grad) for name, t in tensors},
        "modules": {name: (id(module), module.training) for name, module in model.named_modules()},
        "hooks": {name: tuple(module._forward_pre_hooks) for name, module in model.named_modules()},
        "config": model.config.to_dict(),
    }


def assert_as_it_was(model: Any, before: dict[str, Any]) -> None:
    after = state_of(model)
    for name, values in before.pop("values").items():
        assert torch.equal(values, after["values"][name]), name
    assert before == {key: after[key] for key in before}


@pytest.mark.parametrize("dtype", [None, torch.float32])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_its_digest_is_that_of_the_same_weights_in_a_folder(family: str, dtype: Any, tmp_path: Path) -> None:
    model: Any = tiny_config_model(family, normalised=False, dtype=torch.bfloat16)
    save_tiny(family, tmp_path, dtype=torch.bfloat16)
    before = state_of(model)
    given, again = (load_model(model, tokenizer=byte_tokenizer(), dtype=dtype) for _ in range(2))
    kept = load_model(str(tmp_path), dtype=dtype)
    assert given.fingerprint == again.fingerprint == kept.fingerprint
    assert hash_config(given.model) == hash_config(kept.model)
    assert given.name == given.spec == f"in-memory:{type(model).__name__}"
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(given.model(input_ids=ids).logits, kept.model(input_ids=ids).logits)
    assert_as_it_was(model, before)


def test_it_is_searched_tuned_reloaded_and_exported_and_left_as_it_was(tiny: Any, tmp_path: Path) -> None:
    called: list[Any] = []
    tiny.model.layers[0].register_forward_pre_hook(lambda module, args: called.append(module))
    before, tokenizer = state_of(tiny), byte_tokenizer()
    config = {
        "quantization": {"backend": "reference", "embeddings": 8, "cache": str(tmp_path / "bank")},
        "space": {"bits": (4,), "ranks": (4,)},
        "training": {"batch_size": 2},
        "evaluation": {"steps": 1, "validation_rows": 2},
        "finetune": {"test_rows": 2, "sample_answers": 0},
    }
    evaluator = QuantizedLoRAEvaluator(config, model=tiny, tokenizer=tokenizer)
    space = evaluator.space
    plan = Plan(
        tuple((group.bits or space.bits)[0] for group in space.groups),
        tuple(0 if group.is_embedding else 4 for group in space.groups),
    )
    evaluator.evaluate(plan)
    evaluator.tune(plan, steps=1, folder=tmp_path / "run")
    evaluator.close()
    tuned, _ = qra_eval.load(tmp_path / "run", model=tiny, tokenizer=tokenizer)
    assert tuned(input_ids=torch.tensor([[1, 2]])).logits.isfinite().all()
    run = TunedRun(tmp_path / "run", model=tiny, tokenizer=tokenizer)
    assert export(run, "merged", tmp_path / "out", dtype="float32").same_next_token == 1
    with pytest.raises(
        BadInput, match="in-memory model: give it as model= with its tokenizer= to qra_eval.load"
    ):
        qra_eval.load(tmp_path / "run")
    assert "in-memory:" not in (tmp_path / "run" / "adapter" / "adapter_config.json").read_text()
    assert not called
    assert_as_it_was(tiny, before)


def with_integers(model: Any) -> Any:
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(320, 64, dtype=torch.int8), requires_grad=False)
    return model


def with_adapters(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(target_modules=["q_proj"]))


@pytest.mark.parametrize(
    "spoil, said",
    [
        (with_integers, "quantized already"),
        (with_adapters, "has adapters"),
        (lambda model: with_adapters(model).base_model.model, "has adapters"),
        (lambda model: model.model, "without a head"),
        (lambda model: model.to("meta"), "not in memory"),
        (lambda model: torch.nn.Linear(2, 2), "PreTrainedModel is needed"),
        (lambda model: 7, "PreTrainedModel is needed"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(spoil: Any, said: str, tiny: Any) -> None:
    with pytest.raises(BadInput, match=said) as refused:
        check_in_memory_model(spoil(tiny))
    assert "\n" not in str(refused.value)
