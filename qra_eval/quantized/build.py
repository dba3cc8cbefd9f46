"""Makes a bank, decoder layer by decoder layer: what is in memory is one layer, its moments and the hidden states.

The calibration rows pass through the unquantized model once, forward and backward (see `passes`). A layer's linears are
quantized at all levels as soon as their moments are gathered, and what each level's error costs follows from the same
moments; files are written before the next layer begins, so a run that was killed goes on at the layer where it was.

Of processes that need the same bank at the same time one makes it, and the others wait.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from typing import TypeVar

import torch
from qra_backends.base import Backend, Level
from torch import Tensor, nn

from qra_eval.models.device import release_freed_memory
from qra_eval.quantized.bank import Bank, can_store, lock_work
from qra_eval.quantized.blocks import Blocks, move_tensors
from qra_eval.quantized.calibration import WEIGHTINGS, LayerMoments, Weighting, get_expert_kind
from qra_eval.quantized.passes import pass_layers
from qra_eval.tasks.batches import Batch
from qra_search.evaluator import Progress
from qra_search.files import write_json
from qra_search.schemas import LevelName

log = logging.getLogger(__name__)

Item = TypeVar("Item")

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
        unmeasured = [at for at in range(len(blocks)) if figures and bank.read_figures(at) is None]
        return sorted({*bank.find_missing(), *unmeasured})

    def list_linears(layer: int) -> Mapping[str, nn.Module]:
        if layer == len(blocks):  # tables are measured by the linears that stand for them
            return {name: bank.linears[name] for name in bank.list_names(layer)}
        return {name: blocks.model.get_submodule(name) for name in bank.list_names(layer)}

    if not list_missing():
        return
    work = "quantizes the same weights for the same data; set QRA_CACHE to another folder to quantize there at once"
    with lock_work(bank.lock_file, work, progress):
        layers = list_missing()  # another process may have made them meanwhile
        total, done = sum(len(bank.list_names(layer)) for layer in layers), itertools.count(1)

        def report() -> None:
            if progress is not None:
                progress("quantize", next(done), total)

        tokens: dict[str, int] = {}
        levels = [level for missing in bank.find_missing(layers).values() for level in missing]
        passed: Iterable[tuple[int, LayerMoments | None]] = ((layer, None) for layer in layers)
        if layers and (figures or any(map(bank.backend.is_calibrated, levels))):
            passed = pass_layers(blocks, batches, list_linears, weighting, layers, head, progress)
        for layer, moments in passed:
            _quantize(bank, blocks, layer, moments, report)
            if moments is not None:
                tokens |= {
                    n: moments.count_tokens(n) for n in bank.list_names(layer) if get_expert_kind(n) != n
                }
        few = [name for name, count in tokens.items() if count < FEW_TOKENS]
        if few:
            log.warning(
                "%d of %d linears of experts saw fewer than %d calibration tokens, %s only %d, so their Hessians "
                "are mixed with the mean of their layer",
                len(few),
                len(tokens),
                FEW_TOKENS,
                few[0],
                tokens[few[0]],
            )
        if layers := list_missing():
            raise RuntimeError(
                f"layers {layers} of the bank {bank.folder} cannot be read after they were written"
            )


def _quantize(
    bank: Bank, blocks: Blocks, layer: int, moments: LayerMoments | None, report: Callable[[], None]
) -> None:
    """A layer's linears at the levels that it lacks, on the device, each level written to its file; with moments of a
    decoder layer also the figures of all its levels.

    Args:
        report: called for each linear that is done.
    """
    device, backend, names = blocks.get_device(layer), bank.backend, bank.list_names(layer)
    missing = bank.find_missing([layer]).get(layer, [])
    measured = moments if layer < len(blocks) else None
    made: dict[str, dict[Level, dict[str, Tensor]]] = {}
    damage: dict[str, dict[LevelName, float]] = {}

    def quantize(names: Sequence[str]) -> None:
        hessian = None if moments is None else moments.compute_hessian(names[0])
        for name in names:
            linear = bank.linears[name]
            with move_tensors(linear, device, linear.weight.dtype):
                stored = [level for level in bank.list_levels(layer) if can_store(backend, level, linear)]
                weights = None if moments is None else moments.compute_output_weights(name)
                own = [level for level in missing if level in stored]
                modules = backend.quantize_levels(linear, own, hessian=hessian, output_weights=weights)
                if measured is not None:
                    damage[name] = dict.fromkeys(bank.list_levels(layer), 0.0)
                    for level in stored:
                        module = modules[level] if level in modules else bank.load_module(name, level)
                        change = backend.dequantize(module).float() - linear.weight.float()
                        damage[name][level] = measured.estimate_damage(name, change)
            made[name] = {
                level: {key: tensor.cpu() for key, tensor in backend.to_tensors(module).items()}
                for level, module in modules.items()
            }
        if moments is not None:
            moments.release_hessian(names[0])
        release_freed_memory(device)

    units = _group_by_input(bank, names, moments)
    with closing(run_in_threads(quantize, units, count_workers(backend, len(units), device))) as done:
        for unit in done:
            for _ in unit:
                report()
    for level in missing:
        bank.write(layer, level, {name: made[name][level] for name in names if level in made[name]})
    if measured is not None:
        spectrum = {name: values.tolist() for name, values in measured.spectrum.items()}
        figures = {"damage": {name: [*damage[name].values()] for name in names}, "spectrum": spectrum}
        write_json(bank.get_figures_file(layer), figures)


def _group_by_input(bank: Bank, names: Sequence[str], moments: LayerMoments | None) -> list[list[str]]:
    """Linears that share a Hessian, which is factorized once for them; those that take longest come first."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name if moments is None else moments.find_owner(name), []).append(name)

    def work(names: list[str]) -> int:
        return sum(bank.linears[name].out_features * bank.linears[name].in_features ** 2 for name in names)

    return sorted(groups.values(), key=work, reverse=True)


def count_workers(backend: Backend, items: int, device: torch.device) -> int:
    """Threads that quantize so many items: as many as torch has; one if a GPU does it or the backend says so.

    To quantize a linear on a CPU is thousands of small operations. Torch's own threads gain next to nothing on those,
    and on two busy cores they took 5 to 20 times the processor time of one thread. Linears side by side, a thread each,
    gain all that the cores have.
    """
    allowed = backend.side_by_side and device.type == "cpu"
    return max(1, min(items, torch.get_num_threads())) if allowed else 1


def run_in_threads(work: Callable[[Item], None], items: Sequence[Item], workers: int) -> Generator[Item]:
    """Do the work on every item, in `workers` threads that share torch's threads; gives each item whose work is done.

    Items start in the order given. After a failure, which is raised, no further item starts.
    """
    if workers == 1:
        for item in items:
            work(item)
            yield item
        return
    whole = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        workers, initializer=torch.set_num_threads, initargs=(max(1, whole // workers),)
    )
    try:
        futures = {pool.submit(work, item): item for item in items}
        for future in as_completed(futures):
            future.result()
            yield futures[future]
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(whole)  # what a thread sets holds for all that ask afterwards
