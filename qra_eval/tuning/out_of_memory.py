"""What runs out of a device's memory fails as one evaluation, and leaves the device empty for the next."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from qra_eval.quantized.switcher import PlanSwitcher
from qra_search.evaluation.evaluator import EvaluationFailed

Result = TypeVar("Result")


def unless_out_of_memory(switcher: PlanSwitcher, work: Callable[[], Result]) -> Result:
    """What `work` returns.

    Raises:
        EvaluationFailed: memory did not suffice. No plan is in place then, and nothing is kept dequantized.
    """
    try:
        return work()
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
    # Only here: within the `except` block the traceback holds the frames of the failed step, with its whole graph.
    switcher.unquantize()
    switcher.quantized.forget()
    gc.collect()
    torch.cuda.empty_cache()
    raise EvaluationFailed(f"out of memory: {reason}")
