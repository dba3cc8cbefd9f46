"""What runs out of a card's memory is tried again with less of it; what still fails is one evaluation, and no more."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from qra_eval.models.device import is_out_of_memory
from qra_eval.tuning.fine_tuner import FineTuner
from qra_search.evaluation.evaluator import EvaluationFailed

log = logging.getLogger(__name__)

Result = TypeVar("Result")


def retry_with_less_memory(tuner: FineTuner, work: Callable[[], Result], *, training: bool = True) -> Result:
    """What `work` returns, called again with less memory as long as there is a way to take less.

    What was given up stays so: no later plan fails on what this one has shown.

    Args:
        training: whether the work trains, or measures as evaluations do, so that fewer rows may pass together.

    Raises:
        EvaluationFailed: memory did not suffice. No plan is in place then, and nothing is kept dequantized.
    """
    while True:
        try:
            return work()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        # Only here: within the `except` block the traceback holds the frames of the failed step, with its whole graph.
        tuner.switcher.unquantize()
        gc.collect()
        torch.cuda.empty_cache()
        # What saves memory and costs time alone is given up, the cheapest first.
        if tuner.switcher.disable_dequantized_cache():
            change = "no dequantized weights are kept"
        elif training and tuner.device_batch_size > 1:
            tuner.halvings += 1
            change = f"at most {tuner.device_batch_size} rows of a batch pass through the model together"
        elif training and tuner.enable_checkpointing():
            change = "activations are recomputed in the backward pass"
        else:
            raise EvaluationFailed(f"out of memory: {reason}")
        log.warning("out of memory (%s), so from now on %s. The rows of a step stay the same", reason, change)
