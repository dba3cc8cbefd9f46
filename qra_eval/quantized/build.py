"""Makes a bank, decoder layer by decoder layer: what is in memory is one layer, its Hessians and the hidden states.

The calibration rows pass through the model once. Their hidden states wait on the host while a layer's Hessians are
gathered and its linears quantized at all levels; files are written before the next layer begins, so a run that was
killed goes on at the layer where it was. Inputs are those of the unquantized model.

Of processes that need the same bank at the same time one makes it, and the others wait.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack

from qra_backends.base import Level
from torch import Tensor, nn

from qra_eval.models.device import give_back_freed_memory
from qra_eval.quantized.bank import Bank, storable
from qra_eval.quantized.blocks import Blocks, Flow, put
from qra_eval.quantized.calibration import LayerMoments, head_moments, likeness, pass_through
from qra_eval.quantized.lock import lock_work
from qra_eval.quantized.threads import sharing, side_by_side, workers
from qra_eval.tasks.batches import Batch
from qra_search.evaluation.evaluator import Progress
from qra_search.space.levels import LevelName

log = logging.getLogger(__name__)

FEW_TOKENS = 256
"""An expert that fewer calibration tokens reached is reported."""


def build(
    bank: Bank,
    blocks: Blocks,
    batches: Sequence[Batch],
    progress: Progress | None = None,
    *,
    head: str | None = None,
) -> None:
    """Quantize what a bank lacks, unless another process is doing so: then wait for it.

    Args:
        bank: its linears are those of the layers of `blocks`; tables are in one layer more.
        batches: of calibration rows; used if a missing level is calibrated.
        head: name of the table that the model's head multiplies by, if it is in the bank.
        progress: called with `("quantize", linears done, of how many)`; while another process quantizes, with which
            one, 0 and 1.

    Raises:
        RuntimeError: a file cannot be read after it was written.
    """
    if not bank.missing():
        return
    work = "quantizes the same weights for the same data; set QRA_CACHE to another folder to quantize there at once"
    with lock_work(bank.lock_file, work, progress):
        if layers := sorted(bank.missing()):  # another process may have made them meanwhile
            _build(bank, blocks, batches, progress, head, layers)
        if missing := sorted(bank.missing()):
            raise RuntimeError(f"layers {missing} of the bank {bank.folder} cannot be read after they were written")


def _build(
    bank: Bank,
    blocks: Blocks,
    batches: Sequence[Batch],
    progress: Progress | None,
    head: str | None,
    layers: Sequence[int],
) -> None:
    """Pass through all layers and quantize those that lack something."""
    total, done = sum(len(bank.names(layer)) for layer in layers), 0
    calibrated = {at for at, levels in bank.missing(layers).items() if any(map(bank.backend.calibrates, levels))}
    flows: list[Flow] = []
    rare: dict[str, int] = {}
    with ExitStack() as stack:
        if calibrated:
            stack.enter_context(blocks.kept())
            with blocks.running():  # no longer: what is outside of layers leaves the room to their quantizing
                flows = [blocks.enter(batch) for batch in batches]
        for layer in range(layers[-1] + 1):
            moments: LayerMoments | None = None
            names = bank.names(layer)
            if flows and layer in layers and layer == len(blocks):
                with blocks.running():
                    moments = head_moments(blocks, flows, head, {name: bank.linears[name] for name in names})
            elif flows and layer <= min(max(calibrated), len(blocks) - 1):
                with blocks.placed(layer):
                    if layer in calibrated:
                        moments = pass_through(blocks, layer, flows, {name: bank.linears[name] for name in names})
                        rare |= {n: moments.tokens(n) for n in names if likeness(n) != n}
                    else:
                        blocks.advance(layer, flows)
            if layer in layers:
                _quantize(bank, blocks, layer, bank.missing([layer])[layer], moments, progress, done, total)
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
    bank: Bank,
    blocks: Blocks,
    layer: int,
    levels: Sequence[LevelName],
    moments: LayerMoments | None,
    progress: Progress | None,
    done: int,
    total: int,
) -> None:
    """A layer's linears at the levels that it lacks, on the device, each level written to its file."""
    device = blocks.device_of(layer)
    made: dict[str, dict[Level, dict[str, Tensor]]] = {}

    def quantize(names: Sequence[str]) -> None:
        hessian = None if moments is None else moments.hessian(names[0])
        for name in names:
            linear: nn.Linear = bank.linears[name]
            with put(linear, device, linear.weight.dtype):
                own = [level for level in levels if storable(bank.backend, level, linear)]
                modules = bank.backend.quantize_levels(linear, own, hessian=hessian)
                made[name] = {
                    level: {key: tensor.cpu() for key, tensor in bank.backend.to_tensors(module).items()}
                    for level, module in modules.items()
                }
        if moments is not None:
            moments.release(names[0])
        give_back_freed_memory(device)

    def told(names: Sequence[str]) -> None:
        if progress is not None:
            progress("quantize", done + len(made), total)

    names = bank.names(layer)
    together = sharing(names, moments, bank.linears)
    side_by_side(quantize, together, workers(bank.backend, len(together), device), told)
    for level in levels:
        bank.write(layer, level, {name: made[name][level] for name in names if level in made[name]})
