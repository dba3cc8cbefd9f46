"""The plug-in `quantized-lora`: what a config names is checked before libraries that take seconds are loaded."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qra_eval.models.device import check_device
from qra_eval.models.names import check_model, check_on_hub, folder_config
from qra_eval.tasks import SPLITS, Task, make_task
from qra_eval.tasks.sources import check_hub, is_place
from qra_search import plugins
from qra_search.config import RunConfig
from qra_search.engines import refusal
from qra_search.errors import BadInput
from qra_search.evaluation.evaluator import Progress

if TYPE_CHECKING:
    from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator

READ_BYTES = 64 << 20
"""Data of more bytes are not read twice: what is wrong in them shows once the libraries are loaded."""


def build(config: RunConfig, *, progress: Progress | None = None, weights: bool = True) -> QuantizedLoRAEvaluator:
    """The evaluator of a run's config; see `qra_eval.evaluators.quantized_lora.build`.

    Raises:
        ValueError: what `check` finds, or what the evaluator refuses.
    """
    check(config, weights=weights)
    check_backend(config)
    if progress is not None:
        progress("load libraries", 0, 1)
    module = import_module("qra_eval.evaluators.quantized_lora")
    if progress is not None:
        progress("load libraries", 1, 1)
    evaluator: QuantizedLoRAEvaluator = module.build(config, progress=progress, weights=weights)
    return evaluator


def check(config: RunConfig, *, weights: bool = True) -> None:
    """Raises ValueError, in one line, for what can be told of a config without torch: options, device, model, backends,
    the task, rows of a user's own that cannot be read, and what is neither on the hub nor was downloaded.

    Args:
        weights: False: the model's weights are not needed.
    """
    if config.options:
        raise BadInput(
            f"unknown option of the evaluator 'quantized-lora': {next(iter(config.options))!r}: it takes none; its "
            "settings are the sections model, task, quantization, space, training, evaluation and finetune"
        )
    check_device(config.model.device)
    check_model(config.model.name, weights=weights)
    folder = Path(config.model.name).expanduser()
    if config.engine is not None and folder.is_dir():
        family = str(folder_config(folder).get("model_type"))
        reason = refusal(config.engine, family)
        if reason is not None:
            raise BadInput(reason)
    _check_backend_names(config)
    task = make_task(config.task.name, data=config.task.data, seed=config.search.seed, **config.task.options)
    _check_rows(config, task)
    check_on_hub(config.model.name)
    if task.hub is not None:
        check_hub(task.hub)


def check_backend(config: RunConfig) -> None:
    """Raises ValueError for a backend's options, and bits that it lacks; needs torch, but no library of models."""
    backend = import_module("qra_backends").make_backend(config.quantization.backend)
    import_module("qra_eval.quantized.space").check_bits(config.space.bits, backend)


def _check_backend_names(config: RunConfig) -> None:
    backend, known = config.quantization.backend, plugins.names("backends")
    several: list[Any] = [backend] if isinstance(backend, str) or "name" in backend else list(backend.values())
    for given in [spec for entry in several for spec in (entry if isinstance(entry, list) else [entry])]:
        name = given if isinstance(given, str) else str(given["name"])
        if not {name, name.rpartition("-")[0]} & set(known):  # variants have a suffix
            raise plugins.UnknownName(plugins.unknown_message("backend", name, known))


def _check_rows(config: RunConfig, task: Task) -> None:
    """Read the rows of files that are not large; what is not there is refused by the task itself."""
    if config.task.data is None and not is_place(config.task.name):
        return
    place = Path(config.task.data or config.task.name)
    files = place.iterdir() if place.is_dir() else [place] if place.is_file() else []
    if sum(file.stat().st_size for file in files) <= READ_BYTES:
        for split in SPLITS:
            task.split(split)
