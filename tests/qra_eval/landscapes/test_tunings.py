"""The formula of real tunings says what it was made of, and the table holds what the design asks for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qra_eval.landscapes.tunings import (
    PRIORS,
    Traits,
    TuningFormula,
    estimate_noise,
    fit_formula,
)

KINDS = 3


def draw_traits(count: int, seed: int = 0) -> Traits:
    """Traits of tunings as the design has them: five rates, three ranks, three lengths."""
    rng = np.random.default_rng(seed)
    return Traits(
        rng.gamma(1.0, 0.5, (count, KINDS)),
        rng.choice([-2.0, 0.0, 2.0], count),
        rng.choice([-2.0, -1.0, 0.0, 1.0, 2.0], count),
        rng.choice([-1.0, 0.0, 1.0], count),
    )


def make_formula(**changes: float) -> TuningFormula:
    parameters = {name: mean for name, (mean, _) in PRIORS.items()} | changes
    return TuningFormula(parameters, np.array([1.0, 2.0, 0.5]))


def test_the_log_loss_is_the_sum_of_its_four_terms() -> None:
    p = {name: 0.1 * (place + 1) for place, name in enumerate(PRIORS)}
    traits = Traits(np.array([[1.0, 0.5, 0.25]]), np.array([2.0]), np.array([3.0]), np.array([-1.0]))
    level = p["level"] - p["level_length"] + p["level_bend"]
    total = 1.0 * 1.0 + 2.0 * 0.5 + 0.5 * 0.25
    damage = math.exp(p["log_damage"] - p["damage_length"]) * total ** math.exp(p["log_power"])
    off = 3.0 - (p["top"] - p["top_length"] + 2.0 * p["top_rank"])
    assert off > 0
    rate = math.exp(p["log_bend"] - p["bend_length"]) * math.exp(p["log_steeper"]) * off**2
    expected = level + damage - 2.0 * p["gain_rank"] + rate
    assert make_formula(**p).predict(traits) == pytest.approx([expected])


def test_a_fit_finds_the_best_rate_and_the_weights_of_kinds() -> None:
    made, traits = make_formula(top=0.5, top_length=-1.4, top_rank=-0.3), draw_traits(200)
    noise = np.random.default_rng(1).normal(0.0, 0.02, 200)
    fitted = fit_formula(traits, np.exp(made.predict(traits) + noise))
    length, rank = np.array([-1.0, 1.0]), np.array([0.0, 2.0])
    assert fitted.compute_best_rate(length, rank) == pytest.approx(
        made.compute_best_rate(length, rank), abs=0.15
    )
    assert fitted.weights / fitted.weights[0] == pytest.approx(made.weights, rel=0.25)


def test_the_noise_is_the_deviation_between_seeds_of_like_tunings() -> None:
    def row(loss: float, seed: int, steps: int = 30, rate: float = 0.001) -> dict:
        alike = {"task": "t", "plan": "p", "learning_rate": rate, "steps": steps}
        return {**alike, "seed": seed, "test_loss": loss}

    rows = [row(math.exp(1.0), 0), row(math.exp(1.2), 1), row(math.exp(2.0), 0, rate=0.002)]
    rows += [row(1.0, 0, steps=120), row(1.0, 1, steps=120)]
    rows.append({**row(0.0, 2), "failed": "diverged"})
    del rows[-1]["test_loss"]
    assert estimate_noise(rows) == pytest.approx({30: 0.2 / math.sqrt(2), 120: 0.0})
