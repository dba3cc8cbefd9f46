"""How alike groups are: the covariance of what is a group's own, as a matrix, or by parts for thousands of groups."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import numpy as np

from qra_search.space.space import SearchSpace

OWN, DEPTH, DEPTH_OF_KIND, KIND = 0.6, 0.2, 0.2, 0.5
"""Variance that is a group's own, shared by groups of near depth, by those of near depth and one kind, by one kind."""
DEPTH_LENGTH = 0.15
"""Length over which groups of near depth are alike, as a share of the model's depth."""
JITTER = 1e-9
MOST_DENSE = 1024
"""Groups up to which the matrix is made; its Cholesky factor grows with their cube, with 6,000 it took seconds."""


class Covariance(Protocol):
    """A covariance S = R R' of P variables, R (P, columns)."""

    columns: int

    def times(self, x: np.ndarray) -> np.ndarray:
        """x S (n, P) of x (n, P)."""

    def rooted(self, x: np.ndarray) -> np.ndarray:
        """x R (n, columns) of x (n, P)."""

    def mixed(self, w: np.ndarray) -> np.ndarray:
        """w R' (n, P) of w (n, columns): of independent normals, draws with this covariance."""


class Dense:
    """A covariance given as a matrix (P, P)."""

    def __init__(self, matrix: np.ndarray):
        self.matrix = matrix
        self.columns = len(matrix)

    @cached_property
    def _root(self) -> np.ndarray:
        return np.linalg.cholesky(self.matrix + JITTER * np.eye(len(self.matrix)))

    def times(self, x: np.ndarray) -> np.ndarray:
        return x @ self.matrix

    def rooted(self, x: np.ndarray) -> np.ndarray:
        return x @ self._root

    def mixed(self, w: np.ndarray) -> np.ndarray:
        return w @ self._root.T


class ByKindAndDepth:
    """The covariance `likeness` of a space's groups without its matrix: O(n (G + K D^2)) a product.

    What groups share, they share by their kind and depth alone, so x is summed up over the groups of each of K kinds at
    each of D depths first.
    """

    def __init__(self, space: SearchSpace):
        kinds, self._kind = np.unique([g.kind for g in space.groups], return_inverse=True)
        if all(g.depth is not None for g in space.groups):
            depths, self._depth = np.unique([float(g.depth or 0) for g in space.groups], return_inverse=True)
            self._near = nearness(depths)
            self._root = np.linalg.cholesky(self._near + JITTER * np.eye(len(depths)))
        else:
            self._depth = np.zeros(len(space), int)
            self._near = self._root = np.zeros((1, 1))
        self._kinds, self._depths = len(kinds), len(self._near)
        self._shared = KIND if len(kinds) > 1 else 0.0
        self._order = np.lexsort((self._depth, self._kind))
        cell = (self._kind * self._depths + self._depth)[self._order]
        self._starts = np.flatnonzero(np.diff(cell, prepend=-1))
        self._cells = cell[self._starts]
        self.columns = len(space) + self._depths + self._kinds * self._depths + self._kinds

    def times(self, x: np.ndarray) -> np.ndarray:
        cells = self._sums(x)
        shared = DEPTH_OF_KIND * cells @ self._near
        shared += DEPTH * cells.sum(1, keepdims=True) @ self._near
        shared += self._shared * cells.sum(2, keepdims=True)
        return OWN * x + shared[:, self._kind, self._depth]

    def rooted(self, x: np.ndarray) -> np.ndarray:
        cells = self._sums(x)
        of_depth = DEPTH**0.5 * cells.sum(1) @ self._root
        of_both = DEPTH_OF_KIND**0.5 * cells @ self._root
        of_kind = self._shared**0.5 * cells.sum(2)
        return np.concatenate([OWN**0.5 * x, of_depth, of_both.reshape(len(x), -1), of_kind], axis=1)

    def mixed(self, w: np.ndarray) -> np.ndarray:
        own, of_depth, of_both, of_kind = np.split(w, np.cumsum(self._widths)[:-1], axis=1)
        shared = DEPTH_OF_KIND**0.5 * of_both.reshape(len(w), self._kinds, self._depths) @ self._root.T
        shared += (DEPTH**0.5 * of_depth @ self._root.T)[:, None, :]
        shared += self._shared**0.5 * of_kind[:, :, None]
        return OWN**0.5 * own + shared[:, self._kind, self._depth]

    @property
    def _widths(self) -> list[int]:
        return [len(self._kind), self._depths, self._kinds * self._depths, self._kinds]

    def _sums(self, x: np.ndarray) -> np.ndarray:
        """(n, K, D), sums of x (n, G) over the groups of each kind at each depth."""
        out = np.zeros((len(x), self._kinds * self._depths))
        out[:, self._cells] = np.add.reduceat(x[:, self._order], self._starts, axis=1)
        return out.reshape(len(x), self._kinds, self._depths)


def covariance(space: SearchSpace, *, alike: bool = True) -> Covariance | None:
    """Of the groups of a space; None is the identity.

    Args:
        alike: whether groups of one kind, and of near depth, are alike.
    """
    if len(space) <= MOST_DENSE:
        return Dense(likeness(space) if alike else np.eye(len(space)))
    return ByKindAndDepth(space) if alike else None


def likeness(space: SearchSpace) -> np.ndarray:
    """Correlation (G, G) of groups: their own part, and what they share with their kind and their depth."""
    groups = space.groups
    total = OWN * np.eye(len(groups))
    kinds = np.array([g.kind for g in groups])
    same = (kinds[:, None] == kinds[None, :]).astype(float)
    if all(g.depth is not None for g in groups):
        near = nearness(np.array([float(g.depth or 0) for g in groups]))
        total += DEPTH * near + DEPTH_OF_KIND * near * same
    if len(set(kinds.tolist())) > 1:
        total += KIND * same
    return total


def nearness(depth: np.ndarray) -> np.ndarray:
    """(n, n), how near depths (n,) are to each other, 1 if they are equal."""
    far = (depth[:, None] - depth[None, :]) / (DEPTH_LENGTH * max(np.ptp(depth), 1.0))
    return np.asarray(np.exp(-0.5 * far**2))
