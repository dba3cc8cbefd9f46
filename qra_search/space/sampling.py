"""Random plans of any size."""

from __future__ import annotations

import numpy as np

from qra_search.space.space import Plan, SearchSpace

LEAN = 1.5
"""Deviation of the logarithm by which a random plan favours its highest choices over its middle ones."""


def leaning_plan(space: SearchSpace, rng: np.random.Generator) -> Plan:
    """A random plan of any size, which leans to few or many bits, and to low or high rank, as is drawn first.

    Choices drawn without such a lean all average out to the same size where there are many groups.
    """
    lean = rng.normal(scale=LEAN, size=2)
    return space.decode(_draw(rng, space.bits_allowed, lean[0]), _draw(rng, space.ranks_allowed, lean[1]))


def _draw(rng: np.random.Generator, mask: np.ndarray, lean: float) -> np.ndarray:
    """Level indices (G,) drawn from those allowed, leaning up or down."""
    weight = np.where(mask, np.exp(lean * np.linspace(-1, 1, mask.shape[1])), 0.0)
    edges = weight.cumsum(1) / weight.sum(1, keepdims=True)
    drawn: np.ndarray = (rng.random((len(mask), 1)) > edges).sum(1)
    return drawn
