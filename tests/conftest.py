"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable

os.environ.setdefault(
    "TRITON_INTERPRET", "1"
)  # read when triton is first imported: kernels then run without a GPU

import pytest
from cli_runner import Qra
from fakes import AdditiveEvaluator, make_space

from qra_search import SearchSpace


def pytest_configure(config: pytest.Config) -> None:
    """Workers get files as collected: xdist would keep those of few tests, the longest among them, for the end."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False
    # A shell starts what runs in the background with SIGINT ignored, and every child inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Modules stay: each collection of garbage would look at all that torch and transformers hold again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest-xdist sets COLUMNS for its workers, and what is piped keeps to it."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def space() -> SearchSpace:
    return make_space()


@pytest.fixture
def evaluator() -> AdditiveEvaluator:
    return AdditiveEvaluator()


@pytest.fixture
def qra(capsys: pytest.CaptureFixture[str]) -> Qra:
    return Qra(capsys)


@pytest.fixture
def notes(tmp_path):
    """A folder in which evaluators in workers leave word of what they did (`worker_evaluators`)."""
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


@pytest.fixture
def kernels(monkeypatch) -> Callable[[bool], None]:
    """Says whether tensors on the CPU go to our kernels, which Triton's interpreter runs."""
    from qra_backends import kernels as our_kernels

    return lambda used: monkeypatch.setattr(our_kernels, "are_kernels_usable", lambda device: used)
