"""Peaks are foretold from shapes alone: sums are within 15% of what real tensors take."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runner import Qra
from evaluators import make_evaluator
from memory_counter import MemoryCounter
from qra_backends import make_backend, storage
from qra_backends.reference import gptq
from tiny_families import tiny_config, tiny_config_model

from qra_eval.costs.activations import Activations
from qra_eval.costs.phases import CUDA_CONTEXT_BYTES, EXPORT_LIBRARY_BYTES, estimate_peaks
from qra_eval.costs.search import CARDS, list_cards
from qra_eval.models.attention import ATTENTION_NAME as FAST
from qra_eval.models.attention import use_fast_attention
from qra_eval.models.linears import find_decoder_layers, find_linears
from qra_eval.quantized import adapters
from qra_eval.tasks.batches import Batch, compute_batch_loss, wrap_head

PHASES = ["load", "quantize", "sensitivities", "search", "tune", "export"]


def shape_only(
    folder: Path,
    backend: str = "reference-gptq",
    layers: int = 4,
    compute: str = "auto",
    family: str = "llama",
    **training: Any,
) -> Any:
    """An evaluator of a model of which there is a config.json alone."""
    model = folder / (f"model-{layers}" if family == "llama" else family)
    if not model.exists():
        tiny_config_model(family, layers=layers, vocabulary=320).config.save_pretrained(model)
    return make_evaluator(
        str(model),
        "arithmetic",
        quantization={"backend": backend, "embeddings": 16, "cache": str(folder / "bank")},
        space={"bits": (2, 3, 4, 8), "ranks": (4, 8)},
        training={"batch_size": 4, "max_length": 64, **training},
        evaluation={"steps": 2, "validation_rows": 4},
        finetune={"steps": 2, "test_rows": 4},
        weights=False,
        dequantized_cache=0,
        compute=compute,
    )


@pytest.mark.parametrize("attention", [FAST, "sdpa"])
@pytest.mark.parametrize(
    ("family", "dropout"),
    [("llama", 0.1), *((f, 0) for f in ("llama", "qwen3", "gemma", "gemma3", "mixtral", "qwen3_moe"))],
)
def test_activations_are_within_15_percent_of_what_a_training_step_takes(
    family: str, dropout: float, attention: str
) -> None:
    vocabulary = 4096 if family.startswith("gemma") else 512
    model: Any = tiny_config_model(family, hidden=128, vocabulary=vocabulary).requires_grad_(False)
    use_fast_attention(model)
    model.set_attn_implementation(attention)
    rank, rows, tokens, labels = 4, 4, 64, 90
    found = find_linears(model)
    linears = {f.name: f.module for f in found if f.layer == 0}
    wrapped = adapters.wrap_linears(model, [f.name for f in found])
    for wrapper in wrapped.values():
        A = torch.ones(rank, wrapper.in_features)
        wrapper.set_adapter(A, torch.ones(wrapper.out_features, rank), 1.0, dropout)
    batch = Batch(
        torch.randint(0, 50, (rows, tokens), generator=torch.Generator().manual_seed(0)),
        torch.arange(labels),
        torch.zeros(labels, dtype=torch.long),
        rows * tokens,
    )
    layers = model.get_submodule(find_decoder_layers(model))
    options = {"layers": len(layers), "rank": rank, "dropout": dropout}
    # Weights as they are take nothing to decode.
    sums = Activations(layers[0], linears, model.config, model.dtype, **options, decoding=0)
    with MemoryCounter() as meter, wrap_head(model) as head:
        meter.exclude(*model.parameters(), *model.buffers())
        compute_batch_loss(model.train(), head, batch).backward()
    assert 0.85 < meter.peak / sums.count_pass_peak_bytes(rows, tokens, labels, training=True) < 1.15


@pytest.mark.parametrize(
    ("name", "levels", "dtype"),
    [
        ("reference", (3, 4), torch.bfloat16),
        ("reference", (3, 4), torch.float32),
        ("reference-gptq", (3, 4, 5, 6), torch.bfloat16),
        ("reference-gptq", (4,), torch.float32),
        ("compressed-tensors", (4,), torch.bfloat16),
    ],
)
def test_what_quantizing_takes_of_a_card_is_as_counted(
    name: str, levels: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_ELEMENTS_AT_ONCE", {})  # as many rows at once as on a GPU
    monkeypatch.setattr(gptq, "_ROWS_AT_ONCE", {})
    backend, linear = (
        make_backend(name),
        torch.nn.Linear(256, 2048, bias=False).to(dtype).requires_grad_(False),
    )
    hessian = torch.eye(256)
    with MemoryCounter() as meter:
        meter.exclude(linear.weight, hessian)
        made = backend.quantize_levels(linear, levels, hessian=hessian)
    stored = sum(backend.storage(bits).bytes(2048, 256) for bits in made)
    foretold = backend.count_work_bytes(levels, 2048, 256, dtype, "cuda") + stored
    assert 0.96 < meter.peak / foretold < 1.04


def test_peaks_are_foretold_from_a_config_alone(tmp_path: Path) -> None:
    evaluator = shape_only(tmp_path)
    peaks = estimate_peaks(evaluator.tuner)
    assert list(peaks) == PHASES and not (tmp_path / "bank").exists()
    assert all(peak.device == 0 and peak.host >= EXPORT_LIBRARY_BYTES for peak in peaks.values())
    facts = evaluator.estimate_search_cost()
    assert facts["phases"] == {name: asdict(peak) for name, peak in peaks.items()}
    assert facts["setup_seconds"] > 0 and facts["evaluation_seconds"] > 0


def test_searched_tables_are_on_a_card_as_they_were_loaded_while_the_untuned_model_is_passed_through(
    tmp_path: Path,
) -> None:
    tiny_config("llama", layers=1, hidden=512, vocabulary=50_000).save_pretrained(tmp_path / "model")
    tuner = make_evaluator(
        str(tmp_path / "model"),
        "arithmetic",
        space={"bits": (2,), "ranks": (2,)},
        weights=False,
        dequantized_cache=0,
        quantization={"backend": "reference", "embeddings": (2,), "cache": str(tmp_path)},
        training={"batch_size": 1, "max_length": 16},
        evaluation={"steps": 1, "validation_rows": 1},
        finetune={"steps": 1, "test_rows": 1},
    ).tuner
    peaks = estimate_peaks(tuner, gpu=True)
    loaded = sum(table.weight.nbytes for table in tuner.quantized_model.tables.values())
    assert peaks["search"].device - CUDA_CONTEXT_BYTES < loaded < peaks["tune"].device - CUDA_CONTEXT_BYTES


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_every_card_has_the_first_settings_that_fit_it(family: str, tmp_path: Path) -> None:
    found = list_cards(shape_only(tmp_path, family=family).tuner, None)
    assert [(card["name"], card["settings"]) for card in found] == [
        (name, "as it is configured") for name in CARDS
    ]
    assert all(card["peak_bytes"] < card["bytes"] for card in found)


def test_doctor_and_a_dry_run_say_what_a_model_takes_and_need_no_weights(tmp_path: Path, qra: Qra) -> None:
    shape_only(tmp_path)
    brief = ("--set", "evaluation.steps=2", "--set", "finetune.steps=2")
    shown = qra("doctor", "--model", tmp_path / "model-4", *brief)
    assert shown.status == 0 and "24 GB" in shown.out and "as it is configured" in shown.out
    rows = qra("doctor", "--model", tmp_path / "model-4", *brief, "--json").json
    assert len(rows) == len(CARDS) and rows[0]["phase"] in PHASES
    refused = qra("doctor", "--model", tmp_path / "nothing")
    assert refused.status == 2 and "no file or folder" in refused.err
    of = ("--model", tmp_path / "model-4", "--task", "arithmetic", "--memory", "uniform3r8")
    shown = qra("search", *of, *brief, "--dry-run")
    assert shown.status == 0
    assert all(words in shown.out for words in ("peak of quantize", "peak of tune", "of this"))
