"""Bytes are counted from the live tensors, wherever a module hides them."""

from __future__ import annotations

import torch
from qra_backends import count_live_bytes
from torch import nn


def test_live_bytes_finds_tensors_in_plain_attributes_dictionaries_and_objects():
    class State:
        def __init__(self) -> None:
            self.scale = torch.zeros(5)  # 20 bytes

    module = nn.Linear(4, 3)  # 48 + 12 bytes
    module.extra = {"zero": [torch.zeros(2, dtype=torch.int8)], "state": State()}
    module.weight.absmax = torch.zeros(7, dtype=torch.float16)  # 14 bytes on the parameter itself
    module.register_buffer("table", torch.zeros(1, dtype=torch.float64))
    assert count_live_bytes(module) == 48 + 12 + 20 + 2 + 14 + 8
    assert count_live_bytes(module, skip=("bias",)) == 48 + 20 + 2 + 14 + 8


def test_live_bytes_counts_a_shared_storage_once_and_a_view_as_its_whole_storage():
    module = nn.Module()
    base = torch.zeros(100)
    module.first, module.second = base[:10], base[50:]
    module.itself = module
    assert count_live_bytes(module) == 400
