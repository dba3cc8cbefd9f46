"""The evaluator on a pretended GPU: what lies on the card in each phase, and that a reload is exact."""

from __future__ import annotations

import pytest
import torch
from pretended_gpu import CPU, CUDA, place, pretended_gpu
from tiny_families import tiny_config_model

from qra_eval.costs.phases import CUDA_CONTEXT, foretell
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.models.tiny import byte_tokenizer
from qra_eval.tuning import saved
from qra_eval.tuning.saved import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("model")
    tiny_config_model("llama", layers=1, vocabulary=320, dtype=torch.bfloat16).save_pretrained(made)
    byte_tokenizer().save_pretrained(made)
    return made


def on_the_card(folder, cache, *, embeddings, **options):
    return QuantizedLoRAEvaluator(
        str(folder), "arithmetic", weight_cache=0, space={"bits": (4,), "ranks": (4,)},
        quantization={"backend": "reference", "cache": str(cache), "embeddings": embeddings},
        training={"batch_size": 2, "max_length": 64}, evaluation={"steps": 1, "validation_rows": 2, "hopeless": 0.5},
        finetune={"steps": 1, "test_rows": 2, "sample_answers": 0},
        **({"device": "cuda"} | options),
    )  # fmt: skip


def test_searched_tables_are_on_the_card_quantized_alone(folder, tmp_path):
    with pretended_gpu():
        evaluator = on_the_card(folder, tmp_path, embeddings=(4,))
        own = [table.linear.weight for table in evaluator.quantized.tables.values()]
        assert own and all(place(weight) == CPU for weight in own), "after loading"
        evaluator.sensitivities()
        plan = evaluator.space.uniform(4, 4)
        evaluator.evaluate(plan)
        assert all(place(weight) == CPU for weight in own), "beside the plan in place"
        assert evaluator.tuner.model.device == CUDA  # where users send their tokens
        evaluator.tune(plan, folder=tmp_path / "run")  # raises if the reload differs
        reloaded, _ = load(tmp_path / "run", device="cuda")
        assert {place(tensor) for tensor in [*reloaded.parameters(), *reloaded.buffers()]} <= {
            CUDA,
            torch.device("meta"),
        }


def test_tables_that_are_not_searched_are_on_the_card(folder, tmp_path):
    with pretended_gpu():
        evaluator = on_the_card(folder, tmp_path, embeddings=16)
        evaluator.evaluate(evaluator.space.uniform(4, 4))
        assert place(evaluator.tuner.model.get_input_embeddings().weight) == CUDA


def test_sensitivities_take_what_is_foretold(tmp_path):
    model = tiny_config_model("llama", layers=1, vocabulary=320, intermediate_size=1024, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    shape = on_the_card(tmp_path / "model", tmp_path, embeddings=16, device="cpu", weights=False)
    told = foretell(shape.tuner, gpu=True)["sensitivities"].device - CUDA_CONTEXT
    with pretended_gpu() as gpu:
        evaluator = on_the_card(tmp_path / "model", tmp_path, embeddings=16)
        evaluator.tuner.switcher.prepare()
        gpu.peak = gpu.bytes
        evaluator.sensitivities()
    assert 0.8 * told < gpu.peak < 1.02 * told


def test_layers_on_two_cards_are_quantized_measured_tuned_and_reloaded_as_on_one(tmp_path, monkeypatch):
    tiny_config_model("llama", layers=3, vocabulary=320, dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(saved, "ROUNDING", 0.0)  # here products are summed in one order
    losses = []
    for device in ("cuda:0", "cuda:0,cuda:1"):
        with pretended_gpu(cards=2) as gpu:
            evaluator = on_the_card(tmp_path / "model", tmp_path / device, embeddings=(4,), device=device)
            damage = evaluator.sensitivities().bits_damage
            plan = evaluator.space.uniform(4, 4)
            told = foretell(evaluator.tuner, evaluator.space.memory_bytes(plan))
            gpu.most.clear()
            found = [evaluator.evaluate(plan).loss]
            assert max(gpu.most.values()) < 1.05 * (told["search"].device - CUDA_CONTEXT)
            assert len(gpu.most) == len(device.split(","))
            tuned = evaluator.tune(plan, folder=tmp_path / device / "run")  # raises if the reload differs
            losses.append((damage.tolist(), found, tuned.row_nats))
            layers = evaluator.quantized.blocks.layers
            cards = [{place(p) for n, p in layer.named_parameters() if "lora" in n} for layer in layers]
    assert cards == [{CUDA}, {torch.device("cuda", 1)}, {torch.device("cuda", 1)}]
    assert losses[0] == losses[1]
