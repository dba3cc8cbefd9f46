"""Makes a bank, decoder layer by decoder layer: what is in memory is one layer, its moments and the hidden states.

The calibration rows pass through the unquantized model once, forward and backward (see `passes`). A layer's linears are
quantized at all levels as soon as their moments are gathered, and what each level's error costs follows from the same
moments; files are written before the next layer begins, so a run that was killed goes on at the layer where it was.

Of processes that need the same bank at the same time one makes it, and the others wait.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from qra_backends.base import Level
from torch import Tensor, nn

from qra_eval.models.device import give_back_freed_memory
from qra_eval.quantized.bank import Bank, storable
from qra_eval.quantized.blocks import Blocks, put
from qra_eval.quantized.calibration import WEIGHTINGS, LayerMoments, Weighting, expert_kind
from qra_eval.quantized.lock import lock_work
from qra_eval.quantized.passes import pass_layers
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
    weighting: Weighting = WEIGHTINGS["outputs"],
    head: str | None = None,
    figures: bool = False,
) -> None:
    """Quantize what a bank lacks, unless another process is doing so: then wait for it.

    Args:
        bank: its linears are those of the layers of `blocks`; tables are in one layer more.
        batches: of calibration rows; used if a missing level is calibrated, or figures are missing.
        head: name of the table that the model's head multiplies by, if it is in the bank.
        figures: whether those are needed that the sensitivities follow from.
        progress: called with `("quantize", linears done, of how many)`; while another process quantizes, with which
            one, 0 and 1.

    Raises:
        RuntimeError: a file cannot be read after it was written.
    """

    def lacking() -> list[int]:
        unmeasured = [at for at in range(len(blocks)) if figures and bank.figures(at) is None]
        return sorted({*bank.missing(), *unmeasured})

    if not lacking():
        return
    work = "quantizes the same weights for the same data; set QRA_CACHE to another folder to quantize there at once"
    with lock_work(bank.lock_file, work, progress):
        if layers := lacking():  # another process may have made them meanwhile
            _build(bank, blocks, batches, weighting, progress, head, layers, figures)
        if layers := lacking():
            raise RuntimeError(f"layers {layers} of the bank {bank.folder} cannot be read after they were written")


def _build(
    bank: Bank,
    blocks: Blocks,
    batches: Sequence[Batch],
    weighting: Weighting,
    progress: Progress | None,
    head: str | None,
    layers: Sequence[int],
    figures: bool,
) -> None:
    """Quantize what some layers lack, and measure what they have, with one pass of the rows if it takes one."""
    missing = bank.missing(layers)
    total, done = sum(len(bank.names(layer)) for layer in layers), 0
    rare: dict[str, int] = {}

    def linears(layer: int) -> Mapping[str, nn.Module]:
        if layer == len(blocks):  # tables are measured by the linears that stand for them
            return {name: bank.linears[name] for name in bank.names(layer)}
        return {name: blocks.model.get_submodule(name) for name in bank.names(layer)}

    def report(before: int, of_layer: int) -> None:
        if progress is not None:
            progress("quantize", before + of_layer, total)

    steps: Iterable[tuple[int, LayerMoments | None]] = ((layer, None) for layer in layers)
    if figures or any(bank.backend.is_calibrated(level) for levels in missing.values() for level in levels):
        steps = pass_layers(blocks, batches, linears, weighting, layers, head, progress)
    for layer, moments in steps:
        _quantize(bank, blocks, layer, missing.get(layer, []), moments, partial(report, done))
        if moments is not None:
            rare |= {n: moments.tokens(n) for n in bank.names(layer) if expert_kind(n) != n}
        done += len(bank.names(layer))
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
    missing: Sequence[LevelName],
    moments: LayerMoments | None,
    report: Callable[[int], None],
) -> None:
    """A layer's linears at the levels that it lacks, on the device, each level written to its file; with moments of a
    decoder layer also the figures of all its levels.

    Args:
        report: called with how many of the layer's linears are done.
    """
    device, backend, names = blocks.device_of(layer), bank.backend, bank.names(layer)
    measured = moments if layer < len(blocks) else None
    made: dict[str, dict[Level, dict[str, Tensor]]] = {}
    damage: dict[str, list[float]] = {}

    def quantize(names: Sequence[str]) -> None:
        hessian = None if moments is None else moments.hessian(names[0])
        for name in names:
            linear = bank.linears[name]
            with put(linear, device, linear.weight.dtype):
                storables = [level for level in bank.levels(layer) if storable(backend, level, linear)]
                weights = None if moments is None else moments.output_weights(name)
                own = [level for level in missing if level in storables]
                modules = backend.quantize_levels(linear, own, hessian=hessian, output_weights=weights)
                if measured is not None:
                    damage[name] = [
                        _damage(bank, measured, name, level, modules.get(level)) if level in storables else 0.0
                        for level in bank.levels(layer)
                    ]
            made[name] = {
                level: {key: tensor.cpu() for key, tensor in backend.to_tensors(module).items()}
                for level, module in modules.items()
            }
        if moments is not None:
            moments.release(names[0])
        give_back_freed_memory(device)

    together = sharing(names, moments, bank.linears)
    side_by_side(quantize, together, workers(backend, len(together), device), lambda _: report(len(made)))
    for level in missing:
        bank.write(layer, level, {name: made[name][level] for name in names if level in made[name]})
    if measured is not None:
        spectrum = {name: values.tolist() for name, values in measured.spectrum.items()}
        bank.write_figures(layer, {"damage": {name: damage[name] for name in names}, "spectrum": spectrum})


def _damage(bank: Bank, moments: LayerMoments, name: str, level: LevelName, module: nn.Module | None) -> float:
    """Of a linear at a level, as it was just made, or is in the bank."""
    weight = bank.backend.dequantize(bank.module(name, level) if module is None else module)
    return moments.damage(name, weight.float() - bank.linears[name].weight.float())
