"""What trackers are sent, by a tool that keeps it all; TensorBoard is in the tests of `qra finetune`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from report_runs import Bits, Guessing, evil_space

from qra_search import Study, plan
from qra_search.app.config import make_config
from qra_search.app.tracking import TRACKERS, SearchTracker, open_trackers
from qra_search.errors import BadInput
from qra_search.space.memory import format_bytes

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


def search(folder: Path, log: Path | str, *names: str, evaluations: float = 12) -> Study:
    with open_trackers(names, folder, CONFIG) as send:
        study = Study(
            Bits(evil_space()),
            strategy=Guessing(),
            evaluations=evaluations,
            memory_budget="uniform3r4",
            log=log,
            callbacks=[SearchTracker(send)],
        )
        study.run()
    return study


def test_every_trial_is_sent_and_a_resumed_search_sends_its_earlier_ones_too(
    tmp_path: Path, keeping: type[Keeping]
) -> None:
    search(tmp_path / "a", tmp_path / "log", "keeping", evaluations=6).log.close()
    done = search(tmp_path / "a", tmp_path / "log", "keeping")
    first, second = keeping.runs
    assert second.ended and second.settings["evaluator"] == "landscape" and second.settings["run"] == "a"
    finished = [t for t in done.log.trials if t.done]
    sent = {int(row["trial"]): row["loss"] for row in second.rows.values() if "loss" in row}
    assert sent == {t.id: t.loss for t in finished} and first.rows.items() <= second.rows.items()
    size = f"best/{format_bytes(done.memory_budgets[0]).replace(' ', '')}"
    lowest = [row[size] for row in second.rows.values() if size in row]
    assert lowest == sorted(lowest, reverse=True) or len(set(lowest)) > 1


def test_a_tool_that_breaks_is_said_once_and_costs_no_search(tmp_path: Path, keeping: type[Keeping]) -> None:
    keeping.fails_at = 3
    with pytest.warns(UserWarning, match="keeping ended, the run continues: ConnectionError") as heard:
        study = search(tmp_path, ":memory:", "keeping")
    assert len(study.log.trials) > 3 and len(keeping.runs[0].rows) == 2
    assert len([w for w in heard if "keeping" in str(w.message)]) == 1


def test_unknown_and_missing_tools_are_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match="unknown tracker 'tensorbord': did you mean tensorboard"):
        search(tmp_path, ":memory:", "tensorbord")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="tracker 'aim' needs the package aim: pip install aim"):
        search(tmp_path, ":memory:", "aim")
    assert set(TRACKERS) <= {str(name) for name in LOGGER_TYPE_TO_CLASS}


def test_full_tunings_refuse_an_unknown_tool_before_the_evaluator_is_built(tmp_path: Path) -> None:
    with plan(memory="75%", config={"evaluator": "landscape"}, out=tmp_path / "run", progress=False) as run:
        run.close()
        with pytest.raises(BadInput, match="unknown tracker 'tensorbord'"):
            run.finetune(track="tensorbord", progress=False)
        with pytest.raises(BadInput, match="cannot fine-tune a plan"):  # what is said once it is built
            run.finetune(progress=False)
