"""Makes a bank, decoder layer by decoder layer: what is in memory is one layer, its Hessians and the hidden states.

The calibration rows pass through the model once. Their hidden states wait on the host while a layer's Hessians are
gathered and its linears quantized at all levels; files are written before the next layer begins, so a run that was
killed goes on at the layer where it was. Inputs are those of the unquantized model.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from filelock import FileLock, Timeout
from qra_backends.base import Level
from torch import Tensor, nn

from qra_eval.quantized.adapter_init import AdapterInit
from qra_eval.quantized.blocks import Blocks, Flow, put
from qra_eval.quantized.calibration import LayerMoments, head_moments, likeness, pass_through
from qra_eval.quantized.threads import sharing, side_by_side, workers
from qra_eval.quantized.weight_cache import QuantizedWeightCache, storable
from qra_eval.tasks.batches import Batch
from qra_search.evaluation.evaluator import Progress
from qra_search.files import read_json, write_json
from qra_search.log.trial_log import describe_writer, this_process
from qra_search.space.levels import LevelName

log = logging.getLogger(__name__)

FEW_TOKENS = 256
"""An expert that fewer calibration tokens reached is reported."""
WAIT_SECONDS = 1.0


def build(
    bank: QuantizedWeightCache,
    blocks: Blocks,
    batches: Sequence[Batch],
    progress: Progress | None = None,
    starts: AdapterInit | None = None,
    *,
    head: str | None = None,
) -> None:
    """Quantize what a bank lacks, once: a second process that needs it waits for the first, and reads what it made.

    Args:
        bank: its linears are those of the layers of `blocks`; tables are in one layer more.
        batches: of calibration rows; used if a missing level is calibrated, or starts are missing.
        starts: to be fitted with the same Hessians.
        head: name of the table that the model's head multiplies by, if it is in the bank.
        progress: called with `("quantize", linears done, of how many)`, and while another process is at it with who
            that is, 0 and 1.

    Raises:
        RuntimeError: a file cannot be read after it was written.
    """
    if not _missing(bank, starts):
        return
    bank.folder.mkdir(parents=True, exist_ok=True)
    with _alone(bank, progress):
        if _missing(bank, starts):
            _build(bank, blocks, batches, progress, starts, head)
    left = _missing(bank, starts)
    if left:
        raise RuntimeError(f"layers {list(left)} of the bank {bank.folder} cannot be read after they were written")


@contextmanager
def _alone(bank: QuantizedWeightCache, progress: Progress | None) -> Iterator[None]:
    """Hold the lock of a bank: of its weights, calibration rows and backend. Another model or data do not wait."""
    lock, holder = FileLock(bank.lock_file), bank.lock_file.with_suffix(".json")
    while True:
        try:
            lock.acquire(timeout=WAIT_SECONDS)
            break
        except Timeout:
            if progress is not None:
                who = describe_writer(read_json(holder) or {})
                why = "it quantizes the same weights for the same data; a QRA_CACHE of one's own does not wait"
                progress(f"wait for {who}: {why}", 0, 1)
    try:
        write_json(holder, this_process(os.getpid()))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _missing(bank: QuantizedWeightCache, starts: AdapterInit | None) -> list[int]:
    """Layers that lack a level, or a start."""
    return sorted({*bank.missing(), *(starts.missing() if starts is not None else ())})


def _build(
    bank: QuantizedWeightCache,
    blocks: Blocks,
    batches: Sequence[Batch],
    progress: Progress | None,
    starts: AdapterInit | None,
    head: str | None,
) -> None:
    missing, layers = bank.missing(), _missing(bank, starts)
    fitted = starts.missing() if starts is not None else {}
    total, done = sum(len(bank.names(layer)) for layer in layers), 0
    calibrated = {layer for layer, levels in missing.items() if any(map(bank.backend.calibrates, levels))} | set(fitted)
    flows: list[Flow] = []
    rare: dict[str, int] = {}
    with ExitStack() as stack:
        if calibrated:
            stack.enter_context(blocks.kept())
            stack.enter_context(blocks.running())
            flows = [blocks.enter(batch) for batch in batches]
        for layer in range(layers[-1] + 1):
            moments: LayerMoments | None = None
            names = bank.names(layer)
            if layer == len(blocks):
                moments = head_moments(blocks, flows, head, {name: bank.linears[name] for name in names})
            elif flows and layer <= max(calibrated):
                with blocks.placed(layer):
                    if layer in calibrated:
                        moments = pass_through(blocks, layer, flows, {name: bank.linears[name] for name in names})
                        rare |= {n: moments.tokens(n) for n in names if likeness(n) != n}
                    else:
                        blocks.advance(layer, flows)
            if layer in missing:
                _quantize(bank, blocks, layer, missing[layer], moments, progress, done, total)
            if starts is not None and moments is not None and layer in fitted:
                starts.fit(layer, fitted[layer], moments, blocks.device)
            if layer in layers:
                done += len(names)
                if progress is not None:
                    progress("quantize", done, total)
    few = [name for name, tokens in rare.items() if tokens < FEW_TOKENS]
    if few:
        log.warning(
            "%d of %d linears of experts saw fewer than %d calibration tokens, %s %d: their Hessians lean on their "
            "layer's mean",
            len(few), len(rare), FEW_TOKENS, few[0], rare[few[0]],
        )  # fmt: skip


def _quantize(
    bank: QuantizedWeightCache,
    blocks: Blocks,
    layer: int,
    levels: Sequence[LevelName],
    moments: LayerMoments | None,
    progress: Progress | None,
    done: int,
    total: int,
) -> None:
    """A layer's linears at the levels that it lacks, on the device, each level written to its file."""
    made: dict[str, dict[Level, dict[str, Tensor]]] = {}

    def quantize(names: Sequence[str]) -> None:
        hessian = None if moments is None else moments.hessian(names[0])
        for name in names:
            linear: nn.Linear = bank.linears[name]
            with put(linear, blocks.device, linear.weight.dtype):
                own = [level for level in levels if storable(bank.backend, level, linear)]
                modules = bank.backend.quantize_levels(linear, own, hessian=hessian)
                made[name] = {
                    level: {key: tensor.cpu() for key, tensor in bank.backend.to_tensors(module).items()}
                    for level, module in modules.items()
                }
        if moments is not None:
            moments.release(names[0])

    def told(names: Sequence[str]) -> None:
        if progress is not None:
            progress("quantize", done + len(made), total)

    names = bank.names(layer)
    together = sharing(names, moments, bank.linears)
    side_by_side(quantize, together, workers(bank.backend, len(together), blocks.device), told)
    for level in levels:
        bank.write(layer, level, {name: made[name][level] for name in names if level in made[name]})
