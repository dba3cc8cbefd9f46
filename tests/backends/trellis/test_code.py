"""The code: windows of a stream, their bytes to the count, and values that never change."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qra_backends import make_backend
from qra_backends.trellis.code import VALUE_UNIT, TrellisCode, make_state_values, pack
from qra_backends.trellis.linear import decode_values
from scipy.stats import norm
from torch import Tensor

LEVELS = {half: half / 2 for half in range(2, 11)}


def one_after_another(column: bytes, code: TrellisCode, rows: int) -> list[int]:
    """States by a shift register that takes the stream's bits in turn: what a decoder without windows would do."""
    bits = [byte >> i & 1 for byte in column for i in range(8)]
    state, taken, states = sum(bit << i for i, bit in enumerate(bits[: code.L])), code.L, []
    for row in range(rows):
        states.append(state)
        for _ in range(code.get_state_shifts()[row % 2]):
            state = state >> 1 | (bits[taken] << code.L - 1 if taken < len(bits) else 0)
            taken += 1
    return states


@settings(deadline=None)
@given(
    half=st.integers(2, 10),
    L=st.integers(10, 16),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 9)),
    seed=st.integers(0, 99),
)
def test_any_weight_is_read_by_itself_as_it_is_in_sequence(
    half: int, L: int, shape: tuple[int, int], seed: int
):
    code, (rows, columns) = TrellisCode(half, L), shape
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (code.stream_bytes(rows), columns), dtype=torch.uint8, generator=g)
    in_turn = np.array([one_after_another(bytes(codes[:, i].tolist()), code, rows) for i in range(columns)]).T
    at = torch.randint(0, rows, (7,), generator=g)
    assert torch.equal(decode_values(codes, at, code), torch.from_numpy(make_state_values(L)[in_turn])[at])


@given(half=st.integers(2, 10), L=st.integers(10, 16), rows=st.integers(1, 40), seed=st.integers(0, 99))
def test_packed_states_are_read_back(half: int, L: int, rows: int, seed: int):
    code, columns = TrellisCode(half, L), 3
    g = torch.Generator().manual_seed(seed)
    streams = torch.randint(0, 256, (code.stream_bytes(rows), columns), dtype=torch.uint8, generator=g)
    streams[-1] &= 255 >> (-(code.locate_state(rows - 1) + L) % 8)  # bits to spare are 0
    states = [one_after_another(bytes(streams[:, i].tolist()), code, rows) for i in range(columns)]
    assert torch.equal(pack(torch.tensor(states, dtype=torch.int32).T, code), streams)


@settings(deadline=None)
@given(out=st.integers(1, 40), inputs=st.integers(1, 40), level=st.sampled_from(make_backend("trellis").bits))
def test_bytes_are_those_of_the_tensors_at_every_shape(out: int, inputs: int, level):
    backend = make_backend({"name": "trellis", "L": 10})
    linear = torch.nn.Linear(inputs, out, bias=False)
    tensors = backend.to_tensors(backend.quantize(linear, level, hessian=torch.eye(inputs)))
    assert sum(tensor.nbytes for tensor in tensors.values()) == backend.storage(level).bytes(out, inputs)


def test_values_are_the_quantiles_of_a_normal_distribution_in_no_order():
    found = make_state_values(12) * VALUE_UNIT
    assert np.abs(np.sort(found) - norm.ppf((np.arange(4096) + 0.5) / 4096)).max() < 2e-3
    assert found.std() == pytest.approx(1, abs=1e-4)
    assert np.abs(np.corrcoef(np.sort(found), found)[0, 1]) < 0.05
    for bits in range(1, 6):  # states that share all but their oldest or newest bits have nothing in common
        assert np.abs(found.reshape(-1, 2**bits).mean(1).std() * 2 ** (bits / 2) - 1) < 0.1
        assert np.abs(found.reshape(2**bits, -1).mean(0).std() * 2 ** (bits / 2) - 1) < 0.1


@pytest.mark.parametrize(
    ("L", "digest"), [(10, "7dec513d7f6e1160"), (12, "e13dd5797ece49ed"), (16, "5ef9f85b735dbd59")]
)
def test_values_are_for_ever(L: int, digest: str):
    """Weights are stored under them. A failure here means that stored weights would be read as others."""
    assert hashlib.sha256(make_state_values(L).tobytes()).hexdigest()[:16] == digest


def test_a_column_is_laid_out_from_its_lowest_bit():
    """Spelled out once: 2 bits, L of 10, three rows in two bytes."""
    column, code = 0b10_0111_0110_1101, TrellisCode(4, 10)
    codes = torch.tensor([[column & 255], [column >> 8]], dtype=torch.uint8)
    states: Tensor = torch.tensor([column & 1023, column >> 2 & 1023, column >> 4 & 1023])
    assert torch.equal(
        decode_values(codes, torch.arange(3), code)[:, 0], torch.from_numpy(make_state_values(10))[states]
    )
