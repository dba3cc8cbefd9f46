"""Predicts the loss at full fidelity from a cheap score and a plan's descriptors: what decides on promotions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qra_search.surrogates.gp import seeded_torch

HIDDEN = 32
STEPS = 300
LEARNING_RATE = 0.02
WEIGHT_DECAY = 1e-2
HUBER_DELTA = 1.0
MIN_PAIRS = 8
"""Evaluations in full that a fit needs."""


@dataclass(frozen=True)
class PromotionModel:
    """A two-layer perceptron (D, 32, 1) that corrects the linear part of its first column, the cheap score.

    Attributes:
        center, scale: float (D + 1,), standardization of the descriptors and of the loss.
        slope: of the loss in the cheap score, both standardized.
        network: the perceptron, a torch module of double precision.
    """

    center: np.ndarray
    scale: np.ndarray
    slope: float
    network: Any

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Loss (M,) at full fidelity of plans with these descriptors (M, D)."""
        import torch

        x = (features - self.center[:-1]) / self.scale[:-1]
        with torch.no_grad():
            correction = self.network(torch.as_tensor(x))[:, 0].numpy()
        return self.center[-1] + self.scale[-1] * (self.slope * x[:, 0] + correction)


def fit_promotion(features: np.ndarray, losses: np.ndarray, *, seed: int = 0) -> PromotionModel | None:
    """Fit to plans evaluated in full by Adam on the Huber loss with weight decay; None if they are too few.

    The output layer begins at zero, so that the fit begins at the straight line in the cheap score and departs
    from it as far as the data ask for.

    Args:
        features: float (N, D), the cheap score first.
        losses: float (N,).
        seed: of the initial weights; the result is a function of the arguments alone.
    """
    if len(losses) < MIN_PAIRS:
        return None
    import torch

    table = np.column_stack([features, losses])
    center, scale = table.mean(0), table.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    unit = (table - center) / scale
    slope = max(float(unit[:, 0] @ unit[:, -1]) / len(unit), 0.0)
    with seeded_torch(seed):
        x, y = torch.as_tensor(unit[:, :-1]), torch.as_tensor(unit[:, -1] - slope * unit[:, 0])
        net = _network(torch, x.shape[1])
        optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        huber = torch.nn.HuberLoss(delta=HUBER_DELTA)
        for _ in range(STEPS):
            optimizer.zero_grad()
            huber(net(x)[:, 0], y).backward()
            optimizer.step()
    return PromotionModel(center, scale, slope, net)


def _network(torch: Any, inputs: int) -> Any:
    net = torch.nn.Sequential(torch.nn.Linear(inputs, HIDDEN), torch.nn.GELU(), torch.nn.Linear(HIDDEN, 1)).double()
    torch.nn.init.zeros_(net[2].weight)
    torch.nn.init.zeros_(net[2].bias)
    return net
