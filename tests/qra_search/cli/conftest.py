"""A landscape that tunes at once, and the command line, for the tests of commands."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_runner import SEARCHED, Qra

from qra_search import Plan, plugins
from qra_search.cli.errors import run_safely
from qra_search.config import RunConfig
from qra_search.evaluation.evaluator import EvaluationFailed, ReloadFailed, Tuned
from qra_search.files import write_json
from qra_search.space.serialization import plan_to_dict


@pytest.fixture
def qra(capsys: pytest.CaptureFixture[str]) -> Qra:
    return Qra(capsys)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `searched` copies."""
    folder = tmp_path_factory.mktemp("searched") / "a"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", io.StringIO())
        patch.setattr("sys.stderr", io.StringIO())
        assert run_safely([str(word) for word in (*SEARCHED, "--out", folder)]) == 0
    return folder


@pytest.fixture
def searched(made_once: Path, tmp_path: Path) -> Path:
    """A run of `Qra.search` in `tmp_path / "a"`."""
    return Path(shutil.copytree(made_once, tmp_path / "a"))


@pytest.fixture
def tuner(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Every evaluator is a landscape that can tune; says what was built and tuned, and is told what fails:
    uniform plans (`failing` is True), mixed ones (False), or what was saved (`forgetful`); `data` are its rows."""
    from qra_eval.evaluators.landscape import build

    load, seen = plugins.load, {"built": 0, "tuned": [], "devices": [], "failing": None, "forgetful": False, "kept": []}
    seen["data"] = "rows"

    def tuning(config: RunConfig, *, progress: Any = None) -> Any:
        evaluator: Any = build(config)
        seen["built"] += 1
        seen["devices"].append(config.model.device)

        def tune(plan: Plan, *, seed: int, folder: Path | None, progress: Any, kept: Path,
                 figures: Any) -> Tuned:  # fmt: skip
            seen["tuned"].append((plan, seed, config.finetune.steps))
            seen["kept"].append(kept)
            if figures is not None:
                figures(1, {"loss": 2.5, "rate": 1e-3})
                figures(2, {"loss": 2.0, "validation_loss": float("inf")})
            progress("tune", 1, 1)
            if (evaluator.space.uniform_choice(plan) is not None) == seen["failing"]:
                raise EvaluationFailed("out of memory: 3 GiB more are needed")
            own = evaluator.space.contains(plan)
            loss = evaluator.true_loss(plan) if own else 0.1
            size = evaluator.space.of(plan).memory_bytes(plan)
            done = Tuned(plan, seed, config.finetune.steps, loss, {"exact_match": 0.25}, size, 1.5)
            if folder is not None:
                (folder / "adapter").mkdir(exist_ok=True)
                write_json(folder / "plan.json", plan_to_dict(evaluator.space, plan))
                if seen["forgetful"]:
                    raise ReloadFailed("logits differ by up to 0.5", done)
            return done

        evaluator.tune, evaluator.tuning_data = tune, lambda: seen["data"]
        return evaluator

    monkeypatch.setattr(plugins, "load", lambda kind, name: tuning if kind == "evaluators" else load(kind, name))
    return seen
