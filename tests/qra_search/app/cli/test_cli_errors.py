"""Wrong input, command by command: one line that names it, says what is allowed, and exit status 2."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from cli_runner import LANDSCAPE, Outcome, Qra

from qra_search.executors import workers

SEARCH = ("search", *LANDSCAPE, "--out", "new")
REAL, TASK = ("search", "--out", "new", "--model"), ("--task", "arithmetic")


@pytest.fixture(scope="module")
def folder(made_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and files that are wrong in many ways."""
    path = tmp_path_factory.mktemp("errors")
    shutil.copytree(made_once, path / "a")
    plan = json.loads((path / "a" / "plan.json").read_text())
    (path / "plan.json").write_text(json.dumps(plan))
    (path / "other.json").write_text(json.dumps({"format": "other/9"}))
    (path / "torn.json").write_text('{"format":')
    plan["groups"][0]["bits"] = 5
    (path / "five.json").write_text(json.dumps(plan))
    (path / "empty").mkdir()
    (path / "unyaml.yaml").write_text("a: [1")
    (path / "bare-task.yaml").write_text("model: {name: tiny}\ntask: {options: {digits: 2}}\n")
    (path / "typo.yaml").write_text("evaluation: {stepz: 3}\n")
    (path / "damaged").mkdir()
    (path / "damaged" / "trials.jsonl").write_bytes(b"not a log" * 50)
    (path / "rows.jsonl").write_text('{"question": "?"}\n')
    return path


NO_TASK = "say with --task what to tune for: a name (qra tasks), a file, or a data set on the hub"
CASES = [
    # the command line itself
    (("serch",), "No such command 'serch'. Did you mean 'search'"),
    (("search", "--modle", "x"), "No such option: --modle"),
    (("search", "--seed", "one"), "Invalid value for '--seed'"),
    (("search", "--evaluations"), "requires an argument"),
    (("show",), "Missing argument 'RUN' (see `qra show --help`)"),
    (("schema", "extra"), "unexpected extra argument"),
    # names
    ((*SEARCH, "--strategy", "addtive"), "unknown strategy 'addtive': did you mean additive?"),
    (("search", "--out", "new", "--evaluator", "landscpe"), "unknown evaluator 'landscpe': did you mean"),
    ((*SEARCH, "--set", "search.options.popsize=3", "--strategy", "additive"), "unknown option of strategy"),
    ((*SEARCH, "--set", "options.lairs=4"), "unknown option of the landscape evaluator: 'lairs': did you"),
    # budgets
    ((*SEARCH, "--memory", "1KiB"), "memory budget 1.0 KiB (1024 bytes) is below the smallest plan"),
    (("plan", "--model", "tiny", "--memory", "75%", "--out", "new", "--dry-run"), NO_TASK),
    (("search", "bare-task.yaml", "--out", "new"), NO_TASK),
    (
        ("plan", *LANDSCAPE, "--memory", "75%", "--set", "options.sensitivities=none", "--out", "new"),
        "measures no sens",
    ),
    (("plan", *LANDSCAPE, "--out", "new"), "say with --memory how many bytes the plan may take"),
    ((*SEARCH, "--memory", "uniform5r8"), "the space has no plan 'uniform5r8': its bits are"),
    # values
    ((*SEARCH, "--bits", "two"), "--bits is 'two': expected numbers separated by commas"),
    (
        (*SEARCH, "--backend", "two=gguf"),
        "quantization.backend is {'two': 'gguf'}: a backend as a mapping needs the key",
    ),
    ((*SEARCH, "--set", "evaluation.steps"), "--set takes a name and a value, such as"),
    ((*SEARCH, "--set", "search.seed=1", "--set", "search.seed=2"), "--set search.seed is given twice: give"),
    ((*SEARCH, "--memory", "75%", "--set", "search.memory=50%"), "give --memory or --set search.memory, not"),
    (("finetune", "a", "--steps", "5", "--set", "finetune.steps=9"), "give --steps or --set finetune.steps"),
    (
        ("finetune", "a", "--rates", "1e-3,2e-3", "--set", "training.learning_rate=0.5"),
        "give --rates or --set train",
    ),
    (("show", "x" * 300), "file name too long"),
    ((*SEARCH[:-1], "x" * 300), "file name too long"),
    ((*SEARCH, "--set", "training.lr=3"), "training.lr is not a known field: did you mean learning_rate?"),
    ((*SEARCH, "--columns", "prompt"), "--columns takes a name and a value, such as"),
    ((*SEARCH, "--set", "evaluation.steps=[1"), "--set evaluation.steps: '[1' is not a YAML value"),
    ((*SEARCH, "--workers", "2", "--executor", "prozess"), "unknown executor 'prozess': did you mean"),
    # configs and folders
    (("search", "none.yaml"), "no config file 'none.yaml'"),
    (("search", "unyaml.yaml"), "unyaml.yaml cannot be read as YAML: line 1, column 6: expected ',' or ']'"),
    (("search", "typo.yaml"), "typo.yaml: evaluation.stepz is not a known field"),
    (("search", *LANDSCAPE, "--out", "/proc/x"), "the run's folder /proc/x cannot be written"),
    (("search", "empty"), "config 'empty' is a folder: give the YAML file, such as empty/config.yaml"),
    (("search",), "say what to search: --model and --task, a config, or the folder of a run to resume"),
    (("search", "a", "--out", "elsewhere"), "a is a run and is resumed in place: remove --out"),
    (("search", *LANDSCAPE, "--out", "a"), "a holds another run: "),
    (("search", *LANDSCAPE, "--out", "plan.json"), "plan.json is a file: give a folder"),
    (("search", "a", "--evaluations", "-3"), "qra: options: search.evaluations is -3"),
    (("search", "damaged"), "damaged has no config.yaml, which this command needs"),
    (("search", "a", "--strategy", "uniform"), "search.strategy is 'random' there and 'uniform'"),
    # runs
    (("report", "none"), "none is not a run, as there is no such folder"),
    (("report", "empty"), "empty is not a run, as it holds neither trials.jsonl"),
    (("report", "a", "--out", "rows.jsonl/x.html"), "rows.jsonl"),
    (("report", "a", "--out", "empty"), "empty is a folder: say which file to write, such as"),
    (("show", "damaged"), "damaged/trials.jsonl"),
    (("finetune", "a", "--memory", "much"), "'much' is not a memory budget"),
    (("show", "a", "none.json"), "none.json does not exist: give the folder of a run, or a plan.json"),
    (("show", "a", "torn.json"), "torn.json is not JSON"),
    (("show", "a", "other.json"), "other.json has plan format"),
    # tuning and the rest
    (("finetune", "a"), "evaluator 'landscape' cannot fine-tune a plan"),
    (("export", "a", "--format", "peft"), "a has no selected tuning (tunings: none): run `qra finetune a`"),
    (("export", "a", "--format", "ggfu"), "unknown export format 'ggfu': did you mean gguf?"),
    (("finetune", "a", "--plan", "five.json"), "bits 5 is not one of"),
    (("finetune", "a", "--plan", "plan.json", "--memory", "1GiB"), "give one of them"),
    (("finetune", "a", "--steps", "0"), "--steps"),
    (("bench", "--task", "hills"), "unknown task 'hills': write FAMILY-LAYERS-GRANULARITY-SENSITIVITIES"),
    (("bench", "--task", "additive-4-layer-flat", "--strategy", "nsga3"), "did you mean nsga2?"),
    (
        ("bench", "--task", "additive-4-layer-flat", "-n", "inf"),
        "--evaluations must be a finite number of at",
    ),
    # what workers cannot have
    ((*SEARCH, "--workers", "2", "--device", "cuda"), "each of 2 workers needs a GPU, and there are 0"),
    ((*SEARCH, "--workers", "1", "--set", "options.lairs=4"), "a worker cannot build its evaluator: unknown"),
    ((*SEARCH, "--executor", "ray"), "--executor only says where workers run: add --workers"),
    ((*SEARCH, "--workers", "1", "--address", "auto"), "--address names a Ray cluster, so it needs"),
    # what would be left unheard
    (("doctor", *TASK), "--model is missing: name the model to list the GPUs that it fits"),
    ((*SEARCH, "--backend", "2=reference,2=gguf"), "--backend 2 is given twice: give it once"),
    # what the real evaluator refuses
    ((*REAL, "smolm2", *TASK), "smollm2"),
    ((*REAL, "./none", *TASK), "no file or folder './none'"),
    ((*REAL, "tiny", "--task", "arithmatic"), "arithmetic"),
    ((*REAL, "tiny", "--task", "none.jsonl"), "none.jsonl"),
    ((*REAL, "tiny", "--task", "rows.jsonl"), "rows.jsonl"),
    ((*REAL, "tiny", "--task", "gsm8k", "--data", "none"), "none"),
    ((*REAL, "tiny", *TASK, "--set", "task.options.digitz=3"), "digitz"),
    ((*REAL, "tiny", *TASK, "--backend", "hqqq"), "hqq"),
    (
        (*REAL, "tiny", *TASK, "--bits", "4,7"),
        "bits 4,7: backend 'mixed' has no 7 bits: choose from 1, trellis-1.5",
    ),
    ((*REAL, "tiny", *TASK, "--backend", "2=bitsandbytes", "--bits", "2"), "2 bits"),
]


def assert_one_line(outcome: Outcome) -> None:
    assert outcome.status == 2, outcome.err
    lines = [line for line in outcome.err.splitlines() if line.startswith("qra: ")]
    assert len(lines) == 1
    assert outcome.err.splitlines()[-1] == lines[0]
    assert "Traceback" not in outcome.err
    assert "QRA_TRACEBACK" not in outcome.err
    if os.environ.get("QRA_SHOW_MESSAGES"):
        print(lines[0])


@pytest.mark.parametrize(("command", "message"), CASES, ids=[" ".join(c)[:60] for c, _ in CASES])
def test_wrong_input_is_one_line_with_status_2(
    qra: Qra, folder: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(workers, "list_visible_gpus", list)
    outcome = qra(*command)
    assert_one_line(outcome)
    assert message in outcome.err.splitlines()[-1]
    assert not (folder / "new").exists()
