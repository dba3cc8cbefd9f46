"""Each bit-width goes to the backend chosen for it."""

from __future__ import annotations

from importlib.metadata import version

import pytest
import torch
from qra_backends import make_backend
from torch import nn

ROUNDED = {"name": "reference", "ranges": "mse"}


def test_the_default_rounds_to_the_nearest_where_bitsandbytes_has_no_level():
    backend = make_backend("mixed")
    assert backend.bits == (2, 3, 4, 5, 6, 8)
    for bits, name in {2: ROUNDED, 3: ROUNDED, 4: "bitsandbytes-nf4", 8: "bitsandbytes-int8"}.items():
        assert backend.identity(bits)["spec"] == make_backend(name).spec
        assert backend.storage(bits).bytes(576, 192) == make_backend(name).storage(bits).bytes(576, 192)


def test_a_hessian_reaches_the_calibrated_part_only():
    linear, backend = nn.Linear(64, 64, bias=False), make_backend({2: "reference-gptq", 4: "reference"})
    assert backend.calibrated and not make_backend("mixed").calibrated
    backend.quantize(linear, 4)
    with pytest.raises(ValueError, match="hessian"):
        backend.quantize(linear, 2)
    backend.quantize(linear, 2, hessian=torch.eye(64))


def test_a_module_of_another_backend_is_refused():
    made = make_backend("trellis").quantize(nn.Linear(32, 32), 1, hessian=torch.eye(32))
    with pytest.raises(
        ValueError, match="backend 'mixed' reads only layers that it made, got a TrellisLinear"
    ):
        make_backend("mixed").dequantize(made)


def test_the_calibrated_variant_is_a_trellis_up_to_five_bits():
    backend = make_backend("mixed-calibrated")
    half = tuple(f"trellis-{bits}" for bits in (1.5, 2.5, 3.5))
    assert backend.calibrated and backend.bits == (1, half[0], 2, half[1], 3, half[2], 4, 5, 6, 8)
    names = [backend.identity(bits)["spec"]["name"] for bits in backend.bits]
    assert names == ["trellis"] * 8 + ["reference-gptq", "bitsandbytes"]


def test_an_identity_is_that_of_the_part_alone():
    one = make_backend({4: "reference", 8: "bitsandbytes-int8"})
    other = make_backend({2: "trellis", 4: "reference", 8: "reference-gptq"})
    assert one.identity(4) == other.identity(4) == make_backend("reference").identity(4)
    assert one.identity(8) != other.identity(8)
    assert one.identity(8)["library"] == {"bitsandbytes": version("bitsandbytes")}
