"""The model that is trained where no other is at hand: once, on problems that the task does not test."""

from __future__ import annotations

import math

import pytest
import torch

from qra_eval.models import tiny
from qra_eval.models.load import load_model
from qra_eval.models.tiny import trained_tiny_model
from qra_eval.tasks.arithmetic import ArithmeticTask
from qra_eval.tasks.scoring import log_likelihoods


@pytest.fixture
def brief(monkeypatch, own_cache):
    """A recipe of a few seconds."""
    recipe = {**tiny.RECIPE, "layers": 1, "hidden": 64, "vocabulary": 400, "steps": 40, "batch": 16}
    monkeypatch.setattr(tiny, "RECIPE", recipe)
    monkeypatch.setattr(tiny, "TRAINING_ROWS", 600)
    return recipe


def test_it_is_trained_once_and_then_read_from_the_cache(brief, monkeypatch):
    told = []
    first = trained_tiny_model(dtype=torch.float32, progress=lambda *step: told.append(step))
    assert told[-1] == ("train the tiny model", 40, 40)
    monkeypatch.setattr(tiny, "_train_into", lambda *_: pytest.fail("trained twice"))
    again = load_model("tiny-trained", dtype=torch.float32)
    assert again.fingerprint == first.fingerprint
    assert not again.model.training and not any(p.requires_grad for p in again.model.parameters())


def test_training_lowers_the_loss_on_problems_it_has_not_seen(brief):
    loaded = trained_tiny_model(dtype=torch.float32)
    task = ArithmeticTask(sizes={"calibration": 1, "validation": 1, "test": 32})
    rows = task.encode(task.split("test"), loaded.tokenizer, 128)
    loss = -log_likelihoods(loaded.model, rows).sum() / sum(int((row.labels >= 0).sum()) for row in rows)
    assert loss < 0.6 * math.log(len(loaded.tokenizer))
