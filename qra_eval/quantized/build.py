"""Encodes what plans ask for: linears that the bank lacks, from moments that one pass of the calibration rows gives.

The rows pass through the unquantized model once, forward and backward (`pass_layers`). If the disk has room, the
moments are kept (`StoredMoments`), and whatever is asked for later is encoded from them; else the missing linears are
encoded in the visit of their layer, and a later command passes the rows again. Codes are the same bits either way. A
linear's file is written as soon as it is encoded, so what a kill leaves is whole or absent.

Of processes that need the same bank at the same time one encodes, and the others wait.
"""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch
from qra_backends.base import Backend
from qra_backends.calibration import pack_symmetric, unpack_symmetric
from torch import Tensor, nn

from qra_eval.models.device import release_freed_memory
from qra_eval.quantized.bank import Bank, lock_work, open_tensors, write_tensors
from qra_eval.quantized.blocks import Blocks, move_tensors
from qra_eval.quantized.calibration import WEIGHTINGS, LayerMoments, Weighting, pass_layers
from qra_eval.tasks.batches import Batch
from qra_search.errors import BadInput
from qra_search.evaluator import Progress
from qra_search.files import read_json, write_json
from qra_search.schemas import LevelName

log = logging.getLogger(__name__)

MAX_DISK_SHARE = 0.25
"""Moments are kept if they take at most this share of what is free on the disk."""


class StoredMoments:
    """The files of a bank's moments: one for each input, and an index of who reads which, written last.

    Gives what `LayerMoments` gives of the linears of all layers.
    """

    def __init__(self, bank: Bank):
        self._bank = bank
        self._stem = bank.digest(bank.calibration, "moments")
        self._index = bank.folder / f"{self._stem}-moments.json"
        self._owners: dict[str, str] = {}

    def is_whole(self) -> bool:
        """Whether the moments of all linears are there; asked again, it is looked up again."""
        try:
            self._owners = read_json(self._index) or {}
            for owner in {*self._owners.values()}:
                open_tensors(self._get_path(owner))
        except (BadInput, FileNotFoundError) as error:
            log.warning("the calibration statistics cannot be read, and are computed again: %s", error)
            return False
        return {*self._bank.linears} <= {*self._owners}

    def has_room(self) -> bool:
        return self.count_bytes() <= MAX_DISK_SHARE * shutil.disk_usage(self._bank.folder).free

    def count_bytes(self) -> int:
        """Bytes of all of them, about: linears of a module that read as many inputs are taken to read the same."""
        inputs = {(n.rpartition(".")[0], m.in_features) for n, m in self._bank.linears.items()}
        return sum(4 * width**2 for _, width in inputs)

    def write(self, names: Sequence[str], moments: LayerMoments) -> None:
        readers: dict[str, list[str]] = {}
        for name in names:
            readers.setdefault(moments.find_moments_owner(name), []).append(name)
        for owner, some in readers.items():
            tensors = {"hessian": pack_symmetric(moments.compute_hessian(owner))}
            for name in some:
                weights = moments.compute_output_weights(name)
                if weights is not None:
                    tensors[f"output_weights::{name}"] = weights
            write_tensors(tensors, self._get_path(owner))
            moments.release_hessian(owner)
            self._owners |= dict.fromkeys(some, owner)

    def write_index(self) -> None:
        write_json(self._index, self._owners)

    def find_moments_owner(self, name: str) -> str:
        return self._owners[name]

    def compute_hessian(self, name: str) -> Tensor:
        packed = open_tensors(self._get_path(self._owners[name])).get_tensor("hessian")
        return unpack_symmetric(packed, self._bank.linears[name].in_features)

    def compute_output_weights(self, name: str) -> Tensor | None:
        file, key = open_tensors(self._get_path(self._owners[name])), f"output_weights::{name}"
        return file.get_tensor(key) if key in file.keys() else None  # noqa: SIM118 - safe_open is no mapping

    def release_hessian(self, name: str) -> None:
        """Nothing is held."""

    def _get_path(self, owner: str) -> Path:
        return self._bank.folder / f"{self._stem}-moments-{owner}.safetensors"


LARGE_PART = 20
"""A unit of more than one of so many parts of all weights takes long."""
SPREAD = 8


def fill_bank(
    bank: Bank,
    wanted: Iterable[tuple[str, LevelName]],
    blocks: Blocks,
    batches: Sequence[Batch],
    progress: Progress | None = None,
    *,
    weighting: Weighting = WEIGHTINGS["outputs"],
    head: str | None = None,
) -> None:
    """Encode what a bank lacks of linears at levels, unless another process is doing so: then wait for it.

    Args:
        bank: its linears are those of the layers of `blocks`; tables are in one layer more.
        batches: of calibration rows; used if a missing level is calibrated and the moments are not kept.
        head: name of the table that the model's head multiplies by, if it is in the bank.
    """
    wanted = list(wanted)
    if not bank.find_missing(wanted):
        return
    work = "quantizes the same weights for the same data; set QRA_CACHE to another folder to quantize there at once"
    with lock_work(bank.lock_file, work, progress):
        missing = bank.find_missing(wanted)  # another process may have made some meanwhile
        done = itertools.count(1)

        def report() -> None:
            if progress is not None:
                progress("quantize", next(done), len(missing))

        def encode(names: Sequence[str], moments: LayerMoments | StoredMoments | None) -> None:
            def encode_linear(name: str, hessian: Tensor | None, weights: Tensor | None) -> None:
                modules = bank.backend.quantize_levels(
                    bank.linears[name], missing[name], hessian=hessian, output_weights=weights
                )
                for level, module in modules.items():
                    write_tensors(bank.backend.to_tensors(module), bank.get_path(name, level))

            own = {name: bank.linears[name] for name in names if name in missing}
            visit_linears(own, moments, encode_linear, bank.backend, blocks.device, report)

        def pass_rows(layers: Sequence[int]) -> Iterator[tuple[int, LayerMoments]]:
            def find(layer: int) -> Mapping[str, nn.Module]:
                return find_modules(bank, blocks, layer)

            return pass_layers(blocks, batches, find, weighting, layers, head, progress)

        calibrated = {
            bank.layer_of[name]
            for name, levels in missing.items()
            if any(map(bank.backend.is_calibrated, levels))
        }
        kept = StoredMoments(bank) if calibrated else None
        if kept is not None and not kept.is_whole() and kept.has_room():
            for layer, moments in pass_rows(sorted({*bank.layer_of.values()})):
                kept.write(bank.list_names(layer), moments)
            kept.write_index()
        if kept is None or kept.is_whole():
            encode(list(missing), kept)
        else:
            for layer, moments in pass_rows(sorted(calibrated)):
                encode(bank.list_names(layer), moments)
            rest = [name for name in missing if bank.layer_of[name] not in calibrated]
            encode(rest, None)


def visit_linears(
    linears: Mapping[str, nn.Linear],
    moments: LayerMoments | StoredMoments | None,
    work: Callable[[str, Tensor | None, Tensor | None], None],
    backend: Backend,
    device: torch.device,
    report: Callable[[], None],
) -> None:
    """Do the work on every linear, put on the device, with its Hessian and output weights; several at once on a CPU.

    Those that share a Hessian, which is factorized once for them, follow one another. `order_units` says which when.
    """
    units: dict[str, list[str]] = {}
    for name in linears:
        units.setdefault(name if moments is None else moments.find_moments_owner(name), []).append(name)

    def visit(names: Sequence[str]) -> None:
        hessian = None if moments is None else moments.compute_hessian(names[0])
        for name in names:
            linear = linears[name]
            with move_tensors(linear, device, linear.weight.dtype):
                work(name, hessian, None if moments is None else moments.compute_output_weights(name))
        if moments is not None:
            moments.release_hessian(names[0])
        release_freed_memory(device)

    weights = {tuple(names): sum(linears[name].weight.numel() for name in names) for names in units.values()}
    items = order_units(weights)
    workers = count_workers(backend, len(items), device)
    if workers == 1:
        for names in items:
            visit(names)
            for _ in names:
                report()
        return
    threads = torch.get_num_threads()
    share = max(1, threads // workers)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,))
    try:
        futures = {pool.submit(visit, names): names for names in items}
        for future in as_completed(futures):
            future.result()
            for _ in futures[future]:
                report()
    finally:  # after a failure no further unit starts
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # what a thread sets holds for all that ask afterwards


def order_units(weights: Mapping[tuple[str, ...], int]) -> list[tuple[str, ...]]:
    """The order in which to work on units of so many weights: the first eighth is like the whole, so that its pace
    foretells the time of all. Those that take long come next, since one that is begun late may keep all others waiting.
    """
    total = sum(weights.values())
    units = sorted(weights, key=weights.__getitem__, reverse=True)
    large = [unit for unit in units if LARGE_PART * weights[unit] > total]
    rest = units[len(large) :]
    spread = [unit for start in range(SPREAD) for unit in rest[start::SPREAD]]
    first = len(rest) // SPREAD
    return [*spread[:first], *large, *spread[first:]]


def find_modules(bank: Bank, blocks: Blocks, layer: int) -> Mapping[str, nn.Module]:
    """A layer's linears as they stand in the model; tables are measured by the linears that stand for them."""
    names = bank.list_names(layer)
    if layer == len(blocks):
        return {name: bank.linears[name] for name in names}
    return {name: blocks.model.get_submodule(name) for name in names}


def count_workers(backend: Backend, items: int, device: torch.device) -> int:
    """Threads that quantize so many items: as many as torch has; one if a GPU does it or the backend says so.

    Torch's own threads gain next to nothing on the small operations of a linear, and take 5 to 20 times the time.
    """
    allowed = backend.side_by_side and device.type == "cpu"
    return max(1, min(items, torch.get_num_threads())) if allowed else 1
