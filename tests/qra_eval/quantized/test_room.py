"""How much memory dequantized weights may take."""

from __future__ import annotations

import re

import pytest
import torch
from evaluators import make_evaluator

from qra_eval.quantized.model import HOST_CACHE_SHARE, count_cache_bytes, count_free_bytes
from qra_search.app.config import ConfigError, make_config
from qra_search.sections import TaskConfig

CPU = torch.device("cpu")


def test_it_is_as_given_or_a_share_of_what_is_free():
    with pytest.raises(ConfigError, match="dequantized_cache"):
        make_config({"model": {"dequantized_cache": "much"}})
    assert (
        count_cache_bytes("2GiB", CPU) == 2 << 30
        and count_cache_bytes(0, CPU) == count_cache_bytes("0", CPU) == 0
    )
    assert count_cache_bytes(1000, CPU) == 1000
    assert count_cache_bytes("auto", CPU) == pytest.approx(HOST_CACHE_SHARE * count_free_bytes(CPU), rel=0.2)


def test_weights_that_are_decoded_at_every_use_are_said_with_the_room_that_keeps_them(
    monkeypatch, caplog, tmp_path
):
    """By a tiny model, of which a quarter of the memory is said to be less than its weights."""

    def made(**options):
        caplog.clear()
        settings = {"quantization": {"backend": "reference", "cache": str(tmp_path)}, **options}
        return make_evaluator("tiny", TaskConfig(name="arithmetic"), **settings).quantized_model

    assert made().keeps_dequantized and not caplog.text
    monkeypatch.setattr("qra_eval.quantized.model.HOST_CACHE_SHARE", 1e-9)
    assert not made().keeps_dequantized and "twice as long" in caplog.text
    asked = re.search(r"dequantized_cache=(\w+)", caplog.text)[1]
    assert made(dequantized_cache=asked).keeps_dequantized and not caplog.text
    assert not made(dequantized_cache=0).keeps_dequantized and not caplog.text  # as it was asked
