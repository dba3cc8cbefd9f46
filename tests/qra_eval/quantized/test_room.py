"""How much memory dequantized weights may take."""

from __future__ import annotations

import pytest
import torch

from qra_eval.quantized.room import HOST_SHARE, free_bytes, weight_cache_bytes
from qra_search.config import ConfigError, make_config

CPU = torch.device("cpu")


def test_it_is_as_given_or_a_share_of_what_is_free():
    assert (
        weight_cache_bytes("2GiB", CPU) == 2 << 30 and weight_cache_bytes(0, CPU) == weight_cache_bytes("0", CPU) == 0
    )
    assert weight_cache_bytes(1000, CPU) == 1000
    assert weight_cache_bytes("auto", CPU) == pytest.approx(HOST_SHARE * free_bytes(CPU), rel=0.2)


def test_what_is_no_size_is_refused_by_the_config():
    assert make_config({"model": {"weight_cache": 0}}).model.weight_cache == "0"
    with pytest.raises(ConfigError, match="weight_cache"):
        make_config({"model": {"weight_cache": "much"}})
