"""Scores of tuned runs by lm-evaluation-harness, an optional extra; from the hub's data, or from local files."""

from __future__ import annotations

import gc
import importlib.util
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qra_eval.models.device import check_device, resolve_devices
from qra_search.plugins import did_you_mean
from qra_search.runs.folder import RunFolder

_CHOICES = {"doc_to_target": "answer", "doc_to_choice": "choices", "test_split": "test", "fewshot_split": "train"}
LOCAL: dict[str, dict[str, Any]] = {
    "arc_easy": _CHOICES,
    "arc_challenge": _CHOICES,
    "openbookqa": {**_CHOICES, "doc_to_text": "question"},
    "gsm8k": {},
}
"""Tasks that local files can stand in for, and what of the harness' definition reads their fields: rows are as
`qra_eval.tasks` reads them, `{"question", "choices", "answer"}` or `{"question", "answer"}`."""


@dataclass(frozen=True)
class Score:
    """One figure of the harness: its value, its standard error (None if there is none), and rows it is over."""

    task: str
    metric: str
    value: float
    stderr: float | None
    rows: int


class Harness:
    """lm-evaluation-harness with its own prompts, metrics and numbers of shots.

    Args:
        tasks: names of the harness' tasks.
        data: folder with `<task>_test.jsonl` (and `<task>_train.jsonl`, from which shots are drawn); default: the hub.
        limit: only the first so many rows of each task.
        batch_size: rows at once.
        shots: examples in the prompt; default: the task's own number.
        device: where models are loaded.

    Raises:
        ValueError: the harness is not installed, the device is not there, or a task is unknown or lacks its files.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        data: str | Path | None = None,
        limit: int | None = None,
        batch_size: int = 8,
        shots: int | None = None,
        device: str = "auto",
    ):
        check_device(device)
        if not tasks:
            raise ValueError("no task is named: give some, such as arc_easy,gsm8k")
        if importlib.util.find_spec("lm_eval") is None:
            raise ValueError('lm-evaluation-harness is not installed: pip install "lm_eval[hf]"')
        self.devices = resolve_devices(device)
        from lm_eval.tasks import TaskManager

        self.tasks, self.limit, self.batch_size, self.shots = tuple(tasks), limit, batch_size, shots
        self._manager = TaskManager()
        known = set(self._manager.all_tasks)
        for task in self.tasks:
            if task not in known:
                near = did_you_mean(task, known).rstrip()
                hint = f": {near}" if near else f", which has {len(known)} others"
                raise ValueError(f"lm-evaluation-harness has no task {task!r}{hint}")
        self._specs = list(self.tasks)
        if data is not None:
            self._folder = tempfile.TemporaryDirectory(prefix="qra-tasks-")
            index = self._manager.task_index
            self._specs = [_local(t, Path(data), index[t].yaml_path, Path(self._folder.name)) for t in self.tasks]

    def score(self, model: Any, tokenizer: Any) -> list[Score]:
        """The scores of a causal language model of transformers or peft, in the order of the tasks.

        Raises:
            ValueError: the harness cannot have a task's data.
        """
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        model.eval()
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=self.batch_size)
        # The harness tells of every request at this level, and asks for nothing that a user could do.
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        try:
            done: Any = simple_evaluate(
                wrapped,
                tasks=self._specs,
                num_fewshot=self.shots,
                limit=self.limit,
                task_manager=self._manager,
                bootstrap_iters=100,  # none at all would leave out the standard errors of means as well
                log_samples=False,
            )
        except (OSError, ConnectionError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"the harness cannot have its data ({first}): check the network, or give --data"
            ) from error
        return [score for task in self.tasks for score in _scores(task, done)]

    def tuned(self, folder: str | Path) -> list[Score]:
        """The scores of the tuned model of a run's folder, exactly as `qra_eval.load` gives it.

        Raises:
            ValueError: there is no tuned plan, or as `score` does.
        """
        from qra_eval.tuning.saved import load  # seconds, which a refusal does without

        return self._scored(
            *load(folder, device=",".join(map(str, self.devices)), trust_remote_code=RunFolder(folder).trusts_code)
        )

    def untuned(self, model: str, *, trust_remote_code: bool = False) -> list[Score]:
        """The scores of a model as it is: neither quantized nor tuned.

        Args:
            model, trust_remote_code: as `qra_eval.models.load_model` takes them.
        """
        from qra_eval.models.load import load_model

        loaded = load_model(model, device=self.devices[0], trust_remote_code=trust_remote_code)
        return self._scored(loaded.model, loaded.tokenizer)

    def _scored(self, model: Any, tokenizer: Any) -> list[Score]:
        scores = self.score(model, tokenizer)
        del model
        gc.collect()  # models hold themselves in cycles, and the next one needs the room
        return scores


def _local(task: str, data: Path, definition: Any, folder: Path) -> str:
    """Path of a file that takes the harness' own definition of a task, but local files for its data."""
    if task not in LOCAL:
        raise ValueError(f"{task} has no local form: local files can stand in for {', '.join(LOCAL)}")
    if not data.is_dir():
        raise ValueError(f"{data} is not a folder: give the one with {task}_test.jsonl and {task}_train.jsonl")
    files = {split: str(data.resolve() / f"{task}_{split}.jsonl") for split in ("test", "train")}
    for file in files.values():
        if not Path(file).is_file():
            raise ValueError(f"{data} has no {Path(file).name}: task data are {task}_test.jsonl and {task}_train.jsonl")
    config = {
        "include": str(definition),
        "task": task,
        **LOCAL[task],
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
        "training_split": "train",
        "validation_split": None,
    }
    path = folder / f"{task}.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def _scores(task: str, done: dict[str, Any]) -> list[Score]:
    found, rows = done["results"][task], int(done["n-samples"][task]["effective"])
    scores = []
    for key, value in found.items():
        metric, comma, how = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        error = found.get(f"{metric}_stderr,{how}")
        name = metric if how == "none" else f"{metric} ({how})"
        scores.append(Score(task, name, float(value), float(error) if isinstance(error, (int, float)) else None, rows))
    return scores
