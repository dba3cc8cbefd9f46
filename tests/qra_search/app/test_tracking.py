"""What trackers are sent, by a tool that keeps it all; TensorBoard is in the tests of `qra finetune`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from qra_search import plan
from qra_search.app.config import make_config
from qra_search.app.tracking import TRACKERS, find_trackers, open_trackers
from qra_search.errors import BadInput

CONFIG = make_config({"evaluator": "landscape"})


class Keeping(GeneralTracker):
    """A tool that keeps what it is sent, in `runs`; `fails_at` names a step at which it breaks."""

    name = "keeping"
    requires_logging_directory = False
    runs: list[Keeping] = []
    fails_at: int | None = None

    def __init__(self, run_name: str, **options: Any):
        super().__init__()
        self.settings: dict[str, Any] = {}
        self.rows: dict[int, dict[str, float]] = {}
        self.ended = False

    def start(self) -> None:
        type(self).runs.append(self)

    @property
    def tracker(self) -> Keeping:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, float], step: int | None = None, **more: Any) -> None:
        if step == self.fails_at:
            raise ConnectionError("the server\nis gone")
        assert step is not None and step not in self.rows
        self.rows[step] = values

    def finish(self) -> None:
        self.ended = True


@pytest.fixture
def keeping(monkeypatch: pytest.MonkeyPatch) -> type[Keeping]:
    monkeypatch.setattr(Keeping, "runs", [])
    monkeypatch.setattr(Keeping, "fails_at", None)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "keeping", Keeping)
    return Keeping


def test_finite_figures_are_sent_with_the_settings(tmp_path: Path, keeping: type[Keeping]) -> None:
    with open_trackers("keeping", tmp_path / "a", CONFIG) as send:
        send({"loss": 2.5, "validation_loss": float("inf")}, 1)
    (run,) = keeping.runs
    assert run.ended and run.settings["evaluator"] == "landscape" and run.settings["run"] == "a"
    assert run.rows == {1: {"loss": 2.5}}


def test_a_tool_that_breaks_is_said_once_and_costs_no_tuning(tmp_path: Path, keeping: type[Keeping]) -> None:
    keeping.fails_at = 3
    with (
        pytest.warns(UserWarning, match="keeping ended, the run continues: ConnectionError") as heard,
        open_trackers("keeping", tmp_path, CONFIG) as send,
    ):
        for step in range(1, 6):
            send({"loss": 1.0}, step)
    assert len(keeping.runs[0].rows) == 2
    assert len([w for w in heard if "keeping" in str(w.message)]) == 1


def test_unknown_and_missing_tools_are_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="unknown tracker 'tensorbord': did you mean tensorboard"):
        find_trackers("tensorbord")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="tracker 'aim' needs the package aim: pip install aim"):
        find_trackers("aim")
    assert set(TRACKERS) <= {str(name) for name in LOGGER_TYPE_TO_CLASS}


def test_full_tunings_refuse_an_unknown_tool_before_the_evaluator_is_built(tmp_path: Path) -> None:
    with plan(memory="75%", config={"evaluator": "landscape"}, out=tmp_path / "run", progress=False) as run:
        run.close()
        with pytest.raises(BadInput, match="unknown tracker 'tensorbord'"):
            run.finetune(track="tensorbord", progress=False)
        with pytest.raises(BadInput, match="cannot fine-tune a plan"):  # what is said once it is built
            run.finetune(progress=False)
