"""Makes a bank, decoder layer by decoder layer: what is in memory is one layer, its moments and the hidden states.

The calibration rows pass through the unquantized model once, forward and backward (see `passes`). A layer's linears are
quantized at all levels as soon as their moments are gathered, and what each level's error costs follows from the same
moments; files are written before the next layer begins, so a run that was killed goes on at the layer where it was.

Of processes that need the same bank at the same time one makes it, and the others wait.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing

from qra_backends.base import Level
from torch import Tensor, nn

from qra_eval.models.device import give_back_freed_memory
from qra_eval.quantized.bank import Bank, can_store
from qra_eval.quantized.blocks import Blocks, move_tensors
from qra_eval.quantized.calibration import WEIGHTINGS, LayerMoments, Weighting, expert_kind
from qra_eval.quantized.lock import lock_work
from qra_eval.quantized.passes import pass_layers
from qra_eval.quantized.threads import count_workers, run_in_threads
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

    def list_missing() -> list[int]:
        unmeasured = [at for at in range(len(blocks)) if figures and bank.figures(at) is None]
        return sorted({*bank.missing(), *unmeasured})

    if not list_missing():
        return
    work = "quantizes the same weights for the same data; set QRA_CACHE to another folder to quantize there at once"
    with lock_work(bank.lock_file, work, progress):
        layers = list_missing()  # another process may have made them meanwhile
        total, done = sum(len(bank.names(layer)) for layer in layers), itertools.count(1)

        def report() -> None:
            if progress is not None:
                progress("quantize", next(done), total)

        tokens: dict[str, int] = {}
        for layer, moments in _pass_layers(bank, blocks, batches, weighting, progress, head, layers, figures):
            _quantize(bank, blocks, layer, moments, report)
            if moments is not None:
                tokens |= {name: moments.tokens(name) for name in bank.names(layer) if expert_kind(name) != name}
        _warn_of_rare_experts(tokens)
        if layers := list_missing():
            raise RuntimeError(f"layers {layers} of the bank {bank.folder} cannot be read after they were written")


def _pass_layers(
    bank: Bank,
    blocks: Blocks,
    batches: Sequence[Batch],
    weighting: Weighting,
    progress: Progress | None,
    head: str | None,
    layers: Sequence[int],
    figures: bool,
) -> Iterator[tuple[int, LayerMoments | None]]:
    """The layers, with their moments if figures, or a level that is missing, need the rows to pass."""

    def linears(layer: int) -> Mapping[str, nn.Module]:
        if layer == len(blocks):  # tables are measured by the linears that stand for them
            return {name: bank.linears[name] for name in bank.names(layer)}
        return {name: blocks.model.get_submodule(name) for name in bank.names(layer)}

    levels = [level for missing in bank.missing(layers).values() for level in missing]
    if layers and (figures or any(map(bank.backend.is_calibrated, levels))):
        yield from pass_layers(blocks, batches, linears, weighting, layers, head, progress)
    else:
        yield from ((layer, None) for layer in layers)


def _warn_of_rare_experts(tokens: Mapping[str, int]) -> None:
    few = [name for name, count in tokens.items() if count < FEW_TOKENS]
    if few:
        log.warning(
            "%d of %d linears of experts saw fewer than %d calibration tokens, %s %d: their Hessians lean on their "
            "layer's mean",
            len(few), len(tokens), FEW_TOKENS, few[0], tokens[few[0]],
        )  # fmt: skip


def _quantize(bank: Bank, blocks: Blocks, layer: int, moments: LayerMoments | None, report: Callable[[], None]) -> None:
    """A layer's linears at the levels that it lacks, on the device, each level written to its file; with moments of a
    decoder layer also the figures of all its levels.

    Args:
        report: called for each linear that is done.
    """
    device, backend, names = blocks.device_of(layer), bank.backend, bank.names(layer)
    missing = bank.missing([layer]).get(layer, [])
    measured = moments if layer < len(blocks) else None
    made: dict[str, dict[Level, dict[str, Tensor]]] = {}
    damage: dict[str, list[float]] = {}

    def quantize(names: Sequence[str]) -> None:
        hessian = None if moments is None else moments.hessian(names[0])
        for name in names:
            linear = bank.linears[name]
            with move_tensors(linear, device, linear.weight.dtype):
                stored = [level for level in bank.levels(layer) if can_store(backend, level, linear)]
                weights = None if moments is None else moments.output_weights(name)
                own = [level for level in missing if level in stored]
                modules = backend.quantize_levels(linear, own, hessian=hessian, output_weights=weights)
                if measured is not None:
                    damage[name] = [
                        _damage(bank, measured, name, level, modules.get(level)) if level in stored else 0.0
                        for level in bank.levels(layer)
                    ]
            made[name] = {
                level: {key: tensor.cpu() for key, tensor in backend.to_tensors(module).items()}
                for level, module in modules.items()
            }
        if moments is not None:
            moments.release(names[0])
        give_back_freed_memory(device)

    units = _group_by_input(bank, names, moments)
    with closing(run_in_threads(quantize, units, count_workers(backend, len(units), device))) as done:
        for unit in done:
            for _ in unit:
                report()
    for level in missing:
        bank.write(layer, level, {name: made[name][level] for name in names if level in made[name]})
    if measured is not None:
        spectrum = {name: values.tolist() for name, values in measured.spectrum.items()}
        bank.write_figures(layer, {"damage": {name: damage[name] for name in names}, "spectrum": spectrum})


def _group_by_input(bank: Bank, names: Sequence[str], moments: LayerMoments | None) -> list[list[str]]:
    """Linears that share a Hessian, which is factorized once for them; those that take longest come first."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name if moments is None else moments.owner(name), []).append(name)

    def work(names: list[str]) -> int:
        return sum(bank.linears[name].out_features * bank.linears[name].in_features ** 2 for name in names)

    return sorted(groups.values(), key=work, reverse=True)


def _damage(bank: Bank, moments: LayerMoments, name: str, level: LevelName, module: nn.Module | None) -> float:
    """Of a linear at a level, as it was just made, or is in the bank."""
    weight = bank.backend.dequantize(bank.module(name, level) if module is None else module)
    return moments.damage(name, weight.float() - bank.linears[name].weight.float())
