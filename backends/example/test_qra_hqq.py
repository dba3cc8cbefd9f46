"""The example backend passes the public conformance kit, and gives what the library gives."""

import copy

import pytest
import torch
from qra_backends import make_backend
from qra_backends.conformance import BackendConformance
from torch import nn


class TestHQQ(BackendConformance):
    @pytest.fixture(scope="class")
    def backend(self):
        return make_backend("hqq")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_weight_is_what_the_library_makes_of_it(bits):
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    linear, backend = nn.Linear(576, 192, bias=False).bfloat16(), make_backend("hqq")
    config = BaseQuantizeConfig(nbits=bits, group_size=64, axis=1)
    theirs = HQQLinear(copy.deepcopy(linear), config, compute_dtype=torch.bfloat16, device="cpu")
    assert torch.equal(backend.dequantize(backend.quantize(linear, bits)), theirs.dequantize())


def test_groups_that_cannot_be_packed_together_are_refused():
    with pytest.raises(ValueError, match="packs 4 groups together"):
        make_backend("hqq").quantize(nn.Linear(64, 7), 2)
