"""Batches, the head at labelled positions, and the training loop compute what the plain way computes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from qra_eval.quantized import adapters
from qra_eval.tuning.training import (
    IGNORED,
    CrossEntropy,
    Diverged,
    LabelledHead,
    Row,
    batch_loss,
    bucketed,
    collate,
    held_out_loss,
    labelled_head,
    rate_at,
    row_losses,
    schedule,
    train,
)

CPU = torch.device("cpu")


def tiny(family: str = "llama"):
    from transformers import Gemma2Config, GPT2Config, LlamaConfig, LlamaForCausalLM
    from transformers.models.gemma2 import Gemma2ForCausalLM
    from transformers.models.gpt2 import GPT2LMHeadModel

    torch.manual_seed(0)
    common = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=61)
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**common, num_key_value_heads=2)).eval()
    if family == "gemma2":  # scales its logits after the head (final_logit_softcapping)
        return Gemma2ForCausalLM(Gemma2Config(**common, num_key_value_heads=2, head_dim=8)).eval()
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=61)).eval()


def rows(count=6, seed=0, vocabulary=61):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        ids = torch.randint(0, vocabulary, (5 + 3 * (i % 4),), generator=generator)
        labels = ids.clone()
        labels[: 2 + i % 3] = IGNORED
        made.append(Row(ids, labels))
    return made


def plain_loss(model, row):
    """Loss of one row alone, unpadded, from all its logits."""
    logits = model(input_ids=row.input_ids.unsqueeze(0)).logits[0, :-1].float()
    return F.cross_entropy(logits, row.labels[1:], ignore_index=IGNORED, reduction="sum"), (
        row.labels[1:] != IGNORED
    ).sum()


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_loss_over_padded_batches_is_that_of_every_row_alone(family):
    model = tiny(family)
    with torch.no_grad():
        pairs = [plain_loss(model, row) for row in rows()]
    expected = float(sum(p[0] for p in pairs) / sum(p[1] for p in pairs))
    for size in (1, 4, 6):
        assert held_out_loss(model, bucketed(rows(), size), CPU) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_losses_of_rows_are_those_of_each_row_alone_in_the_order_given():
    model, some = tiny(), rows()
    totals, counts = row_losses(model, some, 4, CPU)
    for row, total, count in zip(some, totals, counts, strict=True):
        assert count == int((row.labels[1:] != IGNORED).sum())
        assert total == pytest.approx(float(plain_loss(model, row)[0]), rel=1e-4)


def test_the_head_is_put_back_and_untouched_without_positions():
    model = tiny()
    head = model.get_output_embeddings()
    ids = rows()[0].input_ids.unsqueeze(0)
    before = model(input_ids=ids).logits
    with labelled_head(model) as wrapper:
        assert isinstance(model.get_output_embeddings(), LabelledHead) and wrapper.head is head
        assert torch.equal(model(input_ids=ids).logits, before)
    assert model.get_output_embeddings() is head


def test_batches_waste_little_on_padding_and_hold_every_row_once():
    some = rows(40)
    batches = bucketed(some, 8)
    assert sum(b.tokens for b in batches) == sum(map(len, some))
    assert sum(b.input_ids.numel() for b in batches) <= 1.2 * sum(map(len, some))
    assert sum(len(b.targets) for b in batches) == sum(int((r.labels[1:] != IGNORED).sum()) for r in some)


def test_a_first_label_at_position_zero_has_nothing_that_predicts_it():
    batch = collate([Row(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 3]))])
    assert batch.positions.tolist() == [0, 1] and batch.targets.tolist() == [2, 3]


def test_fewer_steps_see_a_prefix_of_the_rows():
    some = rows(64)
    few, many = schedule(some, 2, 8, seed=0), schedule(some, 8, 8, seed=0)
    seen = lambda batches: sorted(tuple(r) for b in batches for r in b.input_ids.tolist())  # noqa: E731
    longest = max(len(r) for r in some)
    pad = lambda r: tuple(r.input_ids.tolist() + [0] * (longest - len(r)))  # noqa: E731
    widen = lambda keys: sorted(k + (0,) * (longest - len(k)) for k in keys)  # noqa: E731
    assert widen(seen(few)) == sorted(pad(r) for r in some[:16])
    assert widen(seen(many)) == sorted(pad(r) for r in some)


def test_the_schedule_follows_the_seed_and_repeats_rows_when_they_run_out():
    some = rows(10)
    key = lambda batches: [b.input_ids.tolist() for b in batches]  # noqa: E731
    assert key(schedule(some, 6, 4, seed=1)) == key(schedule(some, 6, 4, seed=1))
    assert key(schedule(some, 6, 4, seed=1)) != key(schedule(some, 6, 4, seed=2))
    assert len(schedule(some, 6, 4, seed=1)) == 6


def test_the_rate_rises_over_the_warm_up_and_falls_to_almost_nothing():
    rates = [rate_at(s, 20, 0.1) for s in range(20)]
    assert rates[:2] == [0.5, 1.0] and rates[2] == pytest.approx(18 / 19)
    assert all(a > b for a, b in zip(rates[1:], rates[2:], strict=False)) and 0 < rates[-1] < 0.06


def adapted(seed=0, rank=4):
    model = tiny()
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "layers" in n]
    wrapped = adapters.install(model, names)
    init = adapters.AdapterInit(seed, 8)
    for name, w in wrapped.items():
        w.set_adapter(*init.factors(name, w.out_features, w.in_features, rank), 2.0)
    return model, wrapped


def run(model, wrapped, steps=10, seed=0, rate=1e-2):
    return train(
        model,
        adapters.trainable(wrapped),
        schedule(rows(16), steps, 4, seed),
        learning_rate=rate,
        warmup=0.1,
        seed=seed,
        device=CPU,
    )


def test_training_lowers_the_loss_and_changes_nothing_but_the_adapters():
    model, wrapped = adapted()
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if "lora" not in n}
    before = held_out_loss(model, bucketed(rows(16), 4), CPU)
    trained = run(model, wrapped, 30)
    assert held_out_loss(model, bucketed(rows(16), 4), CPU) < before - 0.05
    assert trained.tokens > 0 and trained.seconds >= trained.model_seconds > 0
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if "lora" not in n)


def test_the_same_seed_gives_the_same_loss_and_another_seed_another():
    losses = []
    for seed in (0, 0, 1):
        model, wrapped = adapted(seed)
        run(model, wrapped, seed=seed)
        losses.append(held_out_loss(model, bucketed(rows(16), 4), CPU))
    assert losses[0] == losses[1] != losses[2]


def test_a_loss_that_is_not_finite_ends_the_training():
    model, wrapped = adapted()
    list(wrapped.values())[-1].lora_B.data.fill_(float("nan"))
    with pytest.raises(Diverged, match="step 1 of 10"):
        run(model, wrapped)


def test_no_gradient_reaches_what_is_frozen():
    model, wrapped = adapted()
    with labelled_head(model) as head:
        batch_loss(model, head, bucketed(rows(), 6)[0]).backward()
    assert all((p.grad is not None) == ("lora" in n) for n, p in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_and_its_gradient_are_torchs(dtype):
    torch.manual_seed(0)
    logits = torch.randn(150, 37).to(dtype).requires_grad_()
    targets = torch.randint(0, 37, (150,))
    CrossEntropy.apply(logits, targets).backward()
    other = logits.detach().clone().requires_grad_()
    expected = F.cross_entropy(other.float(), targets, reduction="sum")
    expected.backward()
    assert float(CrossEntropy.apply(logits.detach(), targets)) == pytest.approx(float(expected), rel=1e-5)
    torch.testing.assert_close(logits.grad, other.grad)
