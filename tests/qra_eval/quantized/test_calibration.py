"""Hessians are those of the inputs, layer by layer, and experts that saw little lean on their layer's mean."""

from __future__ import annotations

import pytest
import torch
from evaluators import make_evaluator
from tiny_families import save_tiny
from torch import nn

from qra_eval.models.embeddings import find_embeddings
from qra_eval.models.linears import find_linears
from qra_eval.models.tiny import make_tiny_model
from qra_eval.quantized import build as kept_moments
from qra_eval.quantized.blocks import Blocks
from qra_eval.quantized.calibration import (
    SHRINK_TOKENS,
    TOKEN_FLOOR,
    WEIGHTINGS,
    LayerMoments,
    Weighting,
    pass_layers,
)
from qra_eval.tasks.batches import PASS_MULTIPLE, Batch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def batches():
    none = torch.zeros(0, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    return [Batch(torch.randint(3, 90, (2, n), generator=generator), none, none, 2 * n) for n in (9, 14)]


def gather_moments(model, batches, weighting=WEIGHTINGS["outputs"]):
    """Of every linear."""
    found = find_linears(model)

    def of_layer(layer):
        return {f.name: f.module for f in found if f.layer == layer}

    layers = range(found[-1].layer + 1)
    for layer, moments in pass_layers(
        Blocks(model, CPU, torch.float32), batches, of_layer, weighting, layers
    ):
        yield from ((name, moments) for name in of_layer(layer))


def gathered(model, batches):
    return {name: moments.compute_hessian(name) for name, moments in gather_moments(model, batches)}


def test_they_are_the_mean_squares_of_what_each_linear_reads_in_a_whole_pass(batches):
    model = make_tiny_model(dtype=torch.float32).model
    found = {f.name: f.module for f in find_linears(model)}
    seen = {name: [] for name in found}
    for name, linear in found.items():
        linear.register_forward_pre_hook(lambda module, args, n=name: seen[n].append(args[0].flatten(0, -2)))
    for batch in batches:
        model(input_ids=batch.input_ids)
    rows = {name: torch.cat(parts) for name, parts in seen.items()}
    for name, hessian in gathered(model, batches).items():
        torch.testing.assert_close(hessian, rows[name].T @ rows[name] / len(rows[name]))


def test_gradients_weigh_tokens_and_outputs_and_say_what_a_change_of_a_weight_costs():
    model = make_tiny_model(dtype=torch.float32).model
    found = {f.name: f for f in find_linears(model)}
    generator = torch.Generator().manual_seed(0)
    ids, at = torch.randint(3, 90, (2, 12), generator=generator), torch.tensor([4, 5, 9, 15, 20])
    labels = torch.randint(3, 90, (5,), generator=generator)
    read, squares = {}, {}

    def watch(name):
        def hook(module, args, output):
            read[name] = args[0].detach().flatten(0, -2)
            output.register_hook(lambda g: squares.update({name: g.flatten(0, -2).square()}))

        return hook

    handles = [f.module.register_forward_hook(watch(name)) for name, f in found.items()]
    logits = model(inputs_embeds=model.get_input_embeddings()(ids).detach().requires_grad_(True)).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1)[at], labels, reduction="sum").backward()
    for handle in handles:
        handle.remove()
    weighting = Weighting(mix=0.25, power=0.5, labels="rows")
    batch = Batch(ids, at, labels, ids.numel())
    for name, moments in gather_moments(model, [batch], weighting):
        x = read[name]
        cost = sum(
            square.sum(1)
            for n, square in squares.items()
            if moments.find_moments_owner(n) == moments.find_moments_owner(name)
        )
        norms = x.square().sum(1)
        weights = 0.25 + 0.75 * cost * norms.sum() / (norms * cost).sum()
        hessian = (x * weights[:, None]).T @ x
        torch.testing.assert_close(moments.compute_hessian(name), hessian / len(x), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            moments.compute_output_weights(name), squares[name].mean(0).sqrt(), rtol=1e-4, atol=0
        )
        change = torch.randn(found[name].module.weight.shape, generator=generator)
        expected = ((change @ hessian * change).sum(1) * squares[name].sum(0)).sum() / weights.sum() / 2 / 5
        assert moments.estimate_damage(name, change) == pytest.approx(float(expected), rel=1e-3)
        weight = found[name].module.weight.detach()
        change = (
            weight.norm(dim=1, keepdim=True) * change[:1]
        )  # as large as the weight's rows: some tell of all
        rows = torch.arange(0, len(weight), 3)
        some = moments.estimate_damage(name, change[rows], rows, weight)
        assert some == pytest.approx(moments.estimate_damage(name, change), rel=1e-3)
        tokens = (squares[name].sum(1) * norms).sum()
        assert moments.gradient_squares[name] == pytest.approx(float(tokens), rel=1e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_tables_count_by_how_often_their_token_is_read_and_by_its_logits_gradients(tied):
    model = make_tiny_model(dtype=torch.float32).model
    if not tied:
        model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
    tables = find_embeddings(model)
    generator = torch.Generator().manual_seed(0)
    ids, at = torch.randint(3, 90, (2, 12), generator=generator), torch.tensor([4, 5, 9, 15, 20])
    labels = torch.randint(3, 90, (5,), generator=generator)
    with torch.no_grad():
        likely = model(input_ids=ids).logits.flatten(0, 1)[at].softmax(-1)
    squares = (likely - nn.functional.one_hot(labels, 320)).square().sum(0)
    counts = ids.flatten().bincount(minlength=320).float()
    batch = Batch(nn.functional.pad(ids, (0, 4)), at // 12 * 16 + at % 12, labels, ids.numel(), 12)
    blocks, head = Blocks(model, CPU, torch.float32), next(reversed(tables))
    weighting = Weighting(mix=0.5, power=1.0, labels="rows")
    ((_, moments),) = pass_layers(blocks, [batch], lambda _: tables, weighting, [len(blocks)], head)
    for name in tables:
        uses = [counts, squares] if name == head else [counts]
        expected = sum(use / use.mean() for use in uses).div(len(uses)).sqrt() + TOKEN_FLOOR
        torch.testing.assert_close(moments.compute_output_weights(name), expected, rtol=1e-4, atol=0)
    assert len(tables) == 2 - tied


def test_a_linear_that_reads_nothing_but_zeros_is_as_one_that_reads_nothing(batches):
    model = make_tiny_model(dtype=torch.float32).model
    name = "model.layers.0.mlp.down_proj"
    torch.nn.init.zeros_(model.get_submodule("model.layers.0.mlp.up_proj").weight)
    assert torch.equal(gathered(model, batches)[name], torch.eye(model.get_submodule(name).in_features))


def test_an_expert_that_the_router_rarely_chose_leans_on_all_experts_of_its_layer():
    names = [f"mlp.experts.{n}.up_proj" for n in range(3)]
    experts = {name: nn.Linear(4, 4) for name in names}
    torch.manual_seed(0)
    often, rarely, scale = torch.randn(3000, 4), 5 * torch.randn(10, 4), torch.tensor([1.0, 2.0, 3.0, 4.0])
    moments = LayerMoments(experts, Weighting(mix=1.0, power=1.0))
    with moments.gather(0):
        for name, rows in zip(names, (often, rarely), strict=False):
            torch.autograd.grad((experts[name](rows).sum(0) * scale).sum(), experts[name].bias)
    whole = torch.cat([often, rarely])
    common = whole.T @ whole / len(whole)
    for name, rows in zip(names[:2], (often, rarely), strict=True):
        expected = (rows.T @ rows + SHRINK_TOKENS * common) / (len(rows) + SHRINK_TOKENS)
        torch.testing.assert_close(moments.compute_hessian(name), expected)
        torch.testing.assert_close(moments.compute_output_weights(name), scale**2)
    torch.testing.assert_close(moments.compute_hessian(names[2]), common)
    assert moments.count_tokens(names[2]) == 0


def test_what_rows_are_padded_with_beyond_the_longest_does_not_count(batches):
    model = make_tiny_model(dtype=torch.float32).model
    expected = gathered(model, batches)
    padded = [
        Batch(
            torch.nn.functional.pad(b.input_ids, (0, 32 - b.input_ids.shape[1])),
            b.positions,
            b.targets,
            b.tokens,
            b.input_ids.shape[1],
        )
        for b in batches
    ]
    for name, hessian in gathered(model, padded).items():
        torch.testing.assert_close(hessian, expected[name])


@pytest.mark.parametrize(("family", "is_padded"), [("llama", True), ("qwen3_moe", False)])
def test_rows_for_experts_are_padded_to_no_more_than_the_longest(tmp_path, family, is_padded):
    """An expert's tokens come without their places, so that padding would count."""
    evaluator = make_evaluator(
        save_tiny(family, tmp_path / "m"),
        quantization={"cache": str(tmp_path / "bank")},
        training={"max_length": 512},
    )
    model = evaluator.tuner.quantized_model
    longest = max(map(len, evaluator.tuner.rows("train", model.calibration_row_count)))
    widest = max(batch.input_ids.shape[1] for batch in model.calibration_batches())
    assert longest % PASS_MULTIPLE and (widest > longest) == is_padded


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_codes_are_the_same_whatever_was_in_place_before_their_rows_passed(tmp_path, monkeypatch, compute):
    monkeypatch.setattr(kept_moments, "MAX_DISK_SHARE", 0.0)

    def quantize(folder, *bits):
        options = {"quantization": {"cache": str(tmp_path / folder)}, "compute": compute}
        evaluator = make_evaluator("tiny", "arithmetic", space={"bits": (2, 3), "ranks": (4,)}, **options)
        for level in bits:
            evaluator.tuner.switcher.put_plan(evaluator.space.uniform(level, 4), 0)
        bank = evaluator.quantized_model.bank
        return {f"{n}-{key}": t for n in bank.linears for key, t in bank.load_tensors(n, 3).items()}

    first, later = quantize("one", 3), quantize("two", 2, 3)
    assert first.keys() == later.keys() and all(torch.equal(first[key], later[key]) for key in first)
