"""How much memory dequantized weights may take."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from evaluators import make_evaluator

from qra_eval.quantized.model import HOST_SHARE, count_cache_bytes, count_free_bytes
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
    assert count_cache_bytes("auto", CPU) == pytest.approx(HOST_SHARE * count_free_bytes(CPU), rel=0.2)


def test_weights_that_are_decoded_at_every_use_are_said_with_the_room_that_keeps_them(
    monkeypatch, caplog, tmp_path
):
    """By a tiny model, of which a quarter of the memory is said to be less than its weights."""

    def made(**options):
        caplog.clear()
        settings = {"quantization": {"backend": "reference", "cache": str(tmp_path)}, **options}
        return make_evaluator("tiny", TaskConfig(name="arithmetic"), **settings).quantized_model

    assert made().keeps_dequantized and not caplog.text
    monkeypatch.setattr("qra_eval.quantized.model.HOST_SHARE", 1e-9)
    assert not made().keeps_dequantized and "twice as long" in caplog.text
    asked = re.search(r"dequantized_cache=(\w+)", caplog.text)[1]
    assert made(dequantized_cache=asked).keeps_dequantized and not caplog.text
    assert not made(dequantized_cache=0).keeps_dequantized and not caplog.text  # as it was asked


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is asked, which Linux has")
def test_between_steps_freed_memory_goes_back_to_the_system():
    """In a process of its own, whose heap is known: blocks of 4 MiB, of which every second is freed, in holes."""
    code = """
import torch
from qra_eval.models.device import release_freed_memory
def private():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
torch.ones(7 << 20)  # freed at once: from here on glibc takes blocks as large from its heap
blocks = [torch.ones(1 << 20) for _ in range(64)]
full = private()
del blocks[::2]
kept = private()
release_freed_memory(torch.device("cpu"))
print(full - kept, full - private())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < 0.1 * 32 * 4096 and after > 0.9 * 32 * 4096
