"""A landscape that tunes at once, and the command line, for the tests of commands."""

from __future__ import annotations

import io
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_runner import MIXED, SEARCHED, write_plan
from fakes import QuietTunable

from qra_search import Plan, plugins
from qra_search.app.cli.app import run_safely
from qra_search.app.config import RunConfig
from qra_search.app.evaluator import RateTrial
from qra_search.app.rates import LAW_SLOPE
from qra_search.errors import EvaluationFailed
from qra_search.schemas import TuningRecord


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
def mixed(searched: Path) -> tuple[str | Path, ...]:
    """The command that tunes a mixed plan of a run in `searched`."""
    return ("finetune", searched, "--plan", write_plan(searched, MIXED))


@pytest.fixture
def tuner(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Every evaluator is a landscape that can tune; says what was built and tuned, and is told what fails:
    uniform plans run out of memory (`failing` is True), mixed ones (False), uniform plans diverge (`diverging`),
    Ctrl-C comes after so many tunings (`stops_after`); `data` are its rows, `rates` the validation losses by learning
    rate, where 9 and more diverged, `shift` of a config what its test losses are higher by."""
    from qra_eval.evaluators.landscape import build

    load = plugins.load
    seen: dict[str, Any] = {
        "built": 0,
        "tuned": [],
        "devices": [],
        "folders": [],
        "tried": [],
        "stops_after": 10**9,
    }
    seen |= {"data": "rows", "rates": {}, "shift": lambda config: 0.0}
    seen |= dict.fromkeys(("failing", "diverging"))

    def tuning(config: RunConfig, *, progress: Any = None) -> Any:
        evaluator: Any = build(config)
        evaluator.__class__ = type("Tuning", (type(evaluator), QuietTunable), {})
        seen["built"] += 1
        seen["devices"].append(config.model.device)

        def tune(plan: Plan, *, seed: int, folder: Path, progress: Any, on_step: Any) -> TuningRecord:
            if len(seen["tuned"]) >= seen["stops_after"]:
                raise KeyboardInterrupt
            seen["tuned"].append((plan, seed, config.finetune.steps))
            seen["folders"].append(folder)
            if on_step is not None:
                on_step(1, {"loss": 2.5, "rate": 1e-3})
                on_step(2, {"loss": 2.0, "validation_loss": float("inf")})
            progress("tune", 1, 1)
            is_uniform = evaluator.space.uniform_choice(plan) is not None
            if is_uniform == seen["failing"]:
                raise EvaluationFailed("out of memory: 3 GiB more are needed")
            loss = evaluator.true_loss(plan) if evaluator.space.contains(plan) else 0.1
            loss += seen["shift"](config)
            (folder / "adapter").mkdir(parents=True, exist_ok=True)
            validation = seen["rates"].get(config.training.learning_rate, 1.0)
            diverges = validation is not None and validation >= 9 or is_uniform and seen["diverging"]
            return TuningRecord(
                plan,
                seed,
                config.finetune.steps,
                evaluator.space.find_space(plan).memory_bytes(plan),
                1.5,
                (loss,),
                (1,),
                {"exact_match": (0.25,)},
                validation_loss=validation,
                failed="diverged: training loss is nan" if diverges else "",
            )

        def set_learning_rate(rate: Any) -> None:
            nonlocal config
            training = config.training.model_copy(update={"learning_rate": rate})
            config = config.model_copy(update={"training": training})

        def try_rate(plan: Plan, rate: float, steps: int, **options: Any) -> RateTrial:
            """As if the best rate were 0.002 at 600 steps, and a factor of two off cost a tenth of the loss."""
            if len(seen["tried"]) >= seen["stops_after"]:
                raise KeyboardInterrupt
            seen["tried"].append((plan, rate, steps))
            off = math.log2(rate / 0.002 / (steps / 600) ** LAW_SLOPE)
            return RateTrial(rate, steps, steps, math.exp(0.1 * off**2), (1.0,) * 10)

        evaluator.set_learning_rate, evaluator.try_rate = set_learning_rate, try_rate
        evaluator.finetune_steps = lambda: config.finetune.steps
        evaluator.tune, evaluator.tuning_data = tune, lambda: seen["data"]
        evaluator.estimate = lambda: {"tuning_seconds": 60.0}
        return evaluator

    monkeypatch.setattr(
        plugins, "load", lambda kind, name: tuning if kind == "evaluators" else load(kind, name)
    )
    return seen
