"""Work in several threads that share torch's."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from qra_eval.quantized.build import run_in_threads


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    whole = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(whole)


def test_items_are_worked_on_at_once_and_given_as_they_are_done() -> None:
    together = threading.Barrier(2, timeout=30)
    seen: dict[str, int] = {}

    def work(item: str) -> None:
        together.wait()  # neither goes on alone
        seen[item] = torch.get_num_threads()

    finished = list(run_in_threads(work, ["a", "b"], 2))
    assert seen == {"a": 2, "b": 2} and sorted(finished) == ["a", "b"]
    assert torch.get_num_threads() == 4


def test_after_a_failure_no_further_item_starts_and_threads_are_given_back() -> None:
    started = []

    def work(item: int) -> None:
        started.append(item)
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item"):
        list(run_in_threads(work, list(range(100)), 2))
    assert len(started) < 100 and torch.get_num_threads() == 4
