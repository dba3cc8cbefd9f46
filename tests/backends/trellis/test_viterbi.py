"""The path found is the nearest one, however long the column, and Gaussians are coded as well as is known."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from numpy.typing import NDArray
from qra_backends.trellis import viterbi
from qra_backends.trellis.code import VALUE_UNIT, TrellisCode, make_state_values

KNOWN = {2: 0.278, 4: 0.0732, 6: 0.0195, 8: 0.0053}
"""Squared errors of a Gaussian by bits times two, at L = 12, of the prototype."""


def gaussian(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rounded(columns: NDArray[np.float32], code: TrellisCode, scale: NDArray[np.float32] | None = None):
    """States (n, out) of columns that have nothing to do with one another."""
    states, errors = np.empty(columns.shape, np.int32), np.empty_like(columns)
    scale = np.ones(columns.shape[1], np.float32) if scale is None else scale
    plan = viterbi.make_layout(code)
    viterbi.round_columns(columns.copy(), np.eye(len(columns), dtype=np.float32), scale, states, errors, plan)
    return states, errors


def least_error(x: NDArray[np.float32], scale: NDArray[np.float32], code: TrellisCode) -> float:
    """Of any path, by the textbook's recursion in float64."""
    table, shifts = make_state_values(code.L) * VALUE_UNIT, code.get_state_shifts()
    costs = (x[0] - scale[0] * table.astype(float)) ** 2
    for row in range(1, len(x)):
        shift = shifts[(row - 1) % 2]
        reached = np.tile(costs.reshape(-1, 1 << shift).min(1), 1 << shift)
        costs = reached + (x[row] - scale[row] * table) ** 2
    return float(costs.min())


@pytest.mark.parametrize("half", range(2, 11))
@pytest.mark.parametrize(("L", "rows"), [(10, 1), (10, 2), (12, 150), (13, 67)])
def test_no_path_is_nearer(half: int, L: int, rows: int):
    code, x = TrellisCode(half, L), gaussian(2, rows)
    scale = 0.3 + np.abs(gaussian(rows, seed=1))
    states, errors = rounded(x, code, scale)
    assert np.allclose(errors, x - scale * (make_state_values(L) * VALUE_UNIT)[states], atol=1e-5)
    for shift, now, then in zip(
        np.resize(code.get_state_shifts(), rows), states.T[:-1], states.T[1:], strict=False
    ):
        assert (now >> shift == then & ((1 << L - shift) - 1)).all(), "a state follows from the one before"
    for column, error in zip(x, errors, strict=True):
        assert (error.astype(float) ** 2).sum() == pytest.approx(least_error(column, scale, code), rel=1e-3)


@pytest.mark.parametrize("half", [2, 5])
def test_a_long_column_is_cut_without_loss(half: int):
    rows = 2 * viterbi.PIECE_ROWS + 500
    code, x = TrellisCode(half, 10), gaussian(1, rows)
    _, errors = rounded(x, code)
    nearest = least_error(x[0], np.ones(rows, np.float32), code)
    assert nearest * (1 - 1e-3) < (errors.astype(float) ** 2).sum() < nearest * (1 + 1e-3)


@pytest.mark.parametrize(("half", "known"), KNOWN.items())
def test_gaussians_are_coded_as_well_as_is_known(half: int, known: float):
    _, errors = rounded(gaussian(8, 2000), TrellisCode(half, 12))
    assert (errors**2).mean() == pytest.approx(known, rel=0.03)


def test_errors_are_fed_back_by_the_inverse_factor():
    """Column by column against the same in float64, given the states that were found."""
    code, columns = TrellisCode(4, 10), gaussian(5, 60)
    spread = gaussian(5, 5, seed=2) / 3
    inverse = np.triu(spread, 1) + np.diag([1.0, 0.8, 1.2, 0.9, 1.1]).astype(np.float32)
    scale = np.linspace(0.5, 1.5, 60).astype(np.float32)
    states, errors = np.empty(columns.shape, np.int32), np.empty_like(columns)
    viterbi.round_columns(columns.copy(), inverse, scale, states, errors, viterbi.make_layout(code))
    left = columns.astype(float)
    for i in range(5):
        error = (left[i] - scale * (make_state_values(10) * VALUE_UNIT)[states[i]]) / inverse[i, i]
        assert np.allclose(errors[i], error, atol=1e-4)
        left -= np.outer(np.where(np.arange(5) > i, inverse[i], 0), error)


def test_rows_of_scale_zero_do_no_harm():
    scale = np.zeros(20, np.float32)
    states, errors = rounded(gaussian(2, 20), TrellisCode(4, 10), scale)
    assert (states < 1024).all() and np.isfinite(errors).all()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_kernel_finds_as_near_a_path_in_tritons_interpreter():
    """Whole columns are the same but for ties, as a CPU fuses products and sums; cut ones are nearly as near."""
    import torch
    from qra_backends.trellis import viterbi_triton

    inverse, whole = np.array([[0.8, 0.3], [0, 1.1]], np.float32), viterbi_triton.PIECE_ROWS
    for half, rows in ((4, 37), (5, 60), (10, whole + 35)):
        code, columns, scale = TrellisCode(half, 10), gaussian(2, rows), 0.5 + np.abs(gaussian(rows, seed=1))
        states, errors = np.empty(columns.shape, np.int32), np.empty_like(columns)
        viterbi.round_columns(columns.copy(), inverse, scale, states, errors, viterbi.make_layout(code))
        own, lost = torch.empty(columns.shape, dtype=torch.int32), torch.empty(columns.shape)
        given = (torch.from_numpy(array.copy()) for array in (columns, inverse, scale))
        viterbi_triton.round_columns(*given, code, own, lost)
        assert np.mean(own.numpy() == states) > (0.99 if rows <= whole else 0.5), (half, rows)
        costs = [((np.asarray(found) * inverse.diagonal()[:, None]) ** 2).sum() for found in (lost, errors)]
        assert costs[0] < 1.003 * costs[1], (half, rows, costs)
        shifts, path = np.resize(code.get_state_shifts(), rows), own.numpy().T
        for shift, now, then in zip(shifts, path[:-1], path[1:], strict=False):
            assert (now >> shift == then & ((1 << 10 - shift) - 1)).all(), (
                "a state follows from the one before"
            )
