"""Where adapters start: the usual way, or at the leading part of a fit; and which base goes with them."""

from __future__ import annotations

import pytest
import torch
from qra_backends import make_backend
from torch import nn

from qra_eval.quantized.adapter_init import Initialiser
from qra_eval.quantized.weight_cache import QuantizedWeightCache
from qra_search.config import ConfigError, make_config

ALPHA, RANKS = 4.0, (2, 8)


class Fitted:
    """Factors of one linear, and a bank of bases of their own."""

    bases = object()

    def factors(self, name, level):
        assert (name, level) == ("tall", 2)
        g = torch.Generator().manual_seed(0)
        return torch.randn(8, 64, generator=g), torch.randn(128, 8, generator=g)


@pytest.fixture
def bank(tmp_path):
    linears = {"wide": nn.Linear(96, 64, bias=False), "tall": nn.Linear(64, 128)}
    return QuantizedWeightCache(linears, make_backend("reference"), (2, 4, 16), tmp_path, "test")


def test_a_calibrated_start_is_the_leading_part_of_the_fit_and_at_16_bits_the_usual_one(bank):
    usual, made = (Initialiser(bank, ALPHA, max(RANKS), fitted) for fitted in (None, Fitted()))
    whole_A, whole_B = Fitted().factors("tall", 2)
    for rank in RANKS:
        A, B = made.factors("tall", 2, rank, seed=0)
        torch.testing.assert_close(ALPHA / rank * B @ A, whole_B[:, :rank] @ whole_A[:rank])
    for ours, theirs in zip(made.factors("tall", 16, 2, 3), usual.factors("tall", 16, 2, 3), strict=True):
        assert torch.equal(ours, theirs)


def test_the_usual_start_adds_nothing_and_follows_from_seed_and_name(bank):
    usual = Initialiser(bank, ALPHA, max(RANKS))
    A, B = usual.factors("tall", 2, 2, 0)
    assert A.shape == (2, 64) and B.shape == (128, 2) and not B.any()
    assert torch.equal(A, usual.factors("tall", 4, 8, 0)[0][:2]) and not torch.equal(
        A, usual.factors("tall", 2, 2, 1)[0]
    )


def test_a_base_of_its_own_goes_with_an_adapter_on_quantized_weights_alone(bank):
    usual, made = (Initialiser(bank, ALPHA, max(RANKS), fitted) for fitted in (None, Fitted()))
    assert made.bank_of(2, 4) is Fitted.bases
    assert made.bank_of(2, 0) is made.bank_of(16, 4) is usual.bank_of(2, 4) is bank


@pytest.mark.parametrize("init", ["loftq", "pissa", "eva"])
def test_starts_that_peft_has_are_refused_with_what_to_use(init):
    with pytest.raises(
        ConfigError, match=f"training.init is {init!r}: it is PEFT's, for bases of its own: use calibrated"
    ):
        make_config({"training": {"init": init}})
