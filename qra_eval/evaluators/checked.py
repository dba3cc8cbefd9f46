"""The plug-in `quantized-lora`: what a config names is checked before libraries that take seconds are loaded."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from qra_eval.models.device import check_device
from qra_eval.models.names import check_model
from qra_eval.tasks import SPLITS, make_task
from qra_search import plugins
from qra_search.config import RunConfig
from qra_search.errors import BadInput
from qra_search.evaluation.protocols import Progress

if TYPE_CHECKING:
    from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator

READ_BYTES = 64 << 20
"""Data of more bytes are not read twice: what is wrong in them shows once the libraries are loaded."""


def build(config: RunConfig, *, progress: Progress | None = None, weights: bool = True) -> QuantizedLoRAEvaluator:
    """The evaluator of a run's config; see `qra_eval.evaluators.quantized_lora.build`.

    Raises:
        ValueError: what `check` finds, or what the evaluator refuses.
    """
    check(config)
    evaluator: QuantizedLoRAEvaluator = import_module("qra_eval.evaluators.quantized_lora").build(
        config, progress=progress, weights=weights
    )
    return evaluator


def check(config: RunConfig) -> None:
    """Raises ValueError, in one line, for what can be told of a config without torch: options, device, model, backends,
    the task, and rows of a user's own that cannot be read."""
    if config.options:
        raise BadInput(
            f"unknown option of the evaluator 'quantized-lora': {next(iter(config.options))!r}: it takes none; its "
            "settings are the sections model, task, quantization, space and training"
        )
    check_device(config.model.device)
    check_model(config.model.name)
    backend, known = config.quantization.backend, plugins.names("backends")
    if isinstance(backend, str) and not {backend, backend.rpartition("-")[0]} & set(known):  # variants have a suffix
        raise plugins.UnknownName(plugins.unknown_message("backend", backend, known))
    task = make_task(config.task.name, data=config.task.data, seed=config.search.seed, **config.task.options)
    place = Path(config.task.data or config.task.name)
    if place.is_file() and place.stat().st_size <= READ_BYTES:
        for split in SPLITS:
            task.split(split)
