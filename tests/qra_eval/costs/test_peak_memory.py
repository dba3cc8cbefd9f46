"""The peak of training: counted by hand on one linear, additive in the plan, and lower with checkpointing."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch

from qra_eval.costs.peak_memory import ADAPTER_BYTES, saved_bytes, step_memory
from qra_eval.costs.sizes import TRAINED_NUMBER
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.tasks.batches import collate
from qra_eval.tasks.encoding import Encoded
from qra_search import Plan, search
from qra_search.config import QuantizationConfig, SpaceConfig


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank")

    def make(memory_kind="resident", dtype="float32", ranks=(0, 4, 8), **training):
        return QuantizedLoRAEvaluator(
            "tiny",
            "arithmetic",
            quantization=QuantizationConfig(backend="reference", embeddings=16, cache=str(folder)),
            space=SpaceConfig(bits=(2, 4), ranks=ranks),
            training={"batch_size": 4, "max_length": 64, **training},
            evaluation={"steps": 3, "validation_rows": 4},
            dtype=dtype,
            memory_kind=memory_kind,
        )

    return make


class OneLinear(torch.nn.Module):
    """Logits of a single layer: what is saved can be counted by hand."""

    def __init__(self, width, vocabulary):
        super().__init__()
        self.embed = torch.nn.Embedding(vocabulary, width)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(width, width, bias=False)])
        self.head = torch.nn.Linear(width, vocabulary, bias=False).requires_grad_(False)
        self.embed.requires_grad_(False)

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, use_cache=False):
        hidden = torch.relu(self.layers[0](self.embed(input_ids)))
        self.hidden = weakref.ref(hidden.untyped_storage())
        return SimpleNamespace(logits=self.head(hidden))


def test_saved_bytes_are_the_input_of_the_trained_linear_and_the_output_of_the_nonlinearity():
    model, rows, tokens, width = OneLinear(16, 50), 2, 6, 16
    batch = collate([Encoded(torch.arange(tokens), torch.arange(tokens))] * rows)
    gc.disable()  # as a phase may end before the next collection
    found = saved_bytes(model, batch)
    gone = model.hidden() is None
    gc.enable()
    assert gone
    cell = rows * tokens * width * 4
    assert found["0"] == cell  # the input of the linear, for the gradient by its weight
    indices = 8 * rows * (tokens - 1)  # positions with a label, for the gradient of picking them
    assert cell <= found[""] <= cell + 3 * indices  # the output of relu; the logits' gradient is left out


def test_peak_bytes_add_up_over_groups_and_count_sixteen_bytes_for_an_adapter_weight(build):
    evaluator = build()
    step = step_memory(evaluator.tuner)
    space, peak = evaluator.space, step.space(evaluator.space)
    low, high = space.uniform(2, 4), space.uniform(4, 8)
    widths = sum(m.in_features + m.out_features for g in space.groups for m in g.linears)
    resident = space.memory_bytes(high) - space.memory_bytes(low) - 4 * widths * 2
    assert peak.memory_bytes(high) - peak.memory_bytes(low) == resident + 4 * widths * ADAPTER_BYTES


def test_scales_that_are_trained_along_count_at_every_lossy_level(build):
    usual, along = (build(scales=on).tuner for on in (False, True))
    peaks = [step_memory(bench).space(bench.quantized.space) for bench in (usual, along)]
    linears = [m for g in usual.space.groups for m in g.linears]
    numbers = sum(2 * m.out_features * -(-m.in_features // 64) for m in linears)
    weight = max(m.out_features * m.in_features for m in linears) * 4
    for bits in (2, 4):
        without, with_them = (peak.memory_bytes(peak.uniform(bits, 8)) for peak in peaks)
        assert with_them == without + TRAINED_NUMBER * numbers + weight


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing_and_half_precision(build):
    small, large = (step_memory(build(batch_size=size).tuner) for size in (2, 4))
    assert large.activations == pytest.approx(
        small.activations * (large.rows * large.tokens) / (small.rows * small.tokens), rel=0.02
    )
    assert step_memory(build(gradient_checkpointing=True).tuner).activations < 0.6 * large.activations
    assert step_memory(build(dtype="bfloat16").tuner).activations < 0.8 * large.activations


def test_the_count_leaves_the_evaluator_as_it_was(build):
    evaluator, fresh = build(), build()
    step_memory(evaluator.tuner)
    assert all(wrapper.base is wrapper.frozen is None for wrapper in evaluator.tuner.switcher.wrapped.values())
    plan = evaluator.space.uniform(4, 8)
    assert evaluator.evaluate(plan).loss == fresh.evaluate(plan).loss


def test_a_search_can_be_held_to_the_peak(build):
    evaluator = build("peak", ranks=(4, 8))
    budget = evaluator.space.memory_bytes(evaluator.space.uniform(2, 8))
    result = search(evaluator, strategy="additive", evaluations=16, memory_budget=budget)
    assert not evaluator.quantized.materialised and not result.failures()
    assert result.best().memory_bytes <= budget
    assert result.best().memory_bytes == evaluator.space.memory_bytes(result.best().plan)
    assert evaluator.quantized.space.memory_bytes(result.best().plan) < result.best().memory_bytes


def test_without_adapters_nothing_is_saved(build):
    evaluator = build(ranks=(0,))
    assert step_memory(evaluator.tuner).activations == 0
    assert isinstance(evaluator.space.uniform(2, 0), Plan)
