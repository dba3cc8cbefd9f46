"""Moments of a model's layers kept on disk, so that linears are quantized later without another pass of the rows.

Hessians are kept in float32, as they were gathered: codes made from them are the same bits as within the pass.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from qra_backends.calibration import pack_symmetric, unpack_symmetric
from torch import Tensor

from qra_eval.quantized.bank import Bank
from qra_eval.quantized.calibration import LayerMoments
from qra_eval.quantized.tensorfile import open_tensors, write_tensors
from qra_search.errors import BadInput
from qra_search.files import read_json, write_json

log = logging.getLogger(__name__)

DISK_SHARE = 0.25
"""Moments are kept if they take at most this share of what is free on the disk."""


class KeptMoments:
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
            log.warning("%s: passing the calibration rows again", error)
            return False
        return {*self._bank.linears} <= {*self._owners}

    def has_room(self) -> bool:
        """Whether the disk has room for all of them."""
        return self.count_bytes() <= DISK_SHARE * shutil.disk_usage(self._bank.folder).free

    def count_bytes(self) -> int:
        """Bytes of all of them, about: linears of a module that read as many inputs are taken to read the same."""
        inputs = {(n.rpartition(".")[0], m.in_features) for n, m in self._bank.linears.items()}
        return sum(4 * width**2 for _, width in inputs)

    def write(self, names: Sequence[str], moments: LayerMoments) -> None:
        """Keep the moments of a layer's linears."""
        readers: dict[str, list[str]] = {}
        for name in names:
            readers.setdefault(moments.find_owner(name), []).append(name)
        for owner, some in readers.items():
            tensors = {"hessian": pack_symmetric(moments.compute_hessian(owner))}
            for name in some:
                weights = moments.compute_output_weights(name)
                if weights is not None:
                    tensors[f"output_weights::{name}"] = weights
            write_tensors(tensors, self._get_path(owner))
            moments.release_hessian(owner)
            self._owners |= dict.fromkeys(some, owner)

    def finish(self) -> None:
        """All layers are written."""
        write_json(self._index, self._owners)

    # -- as of `LayerMoments` --------------------------------------------------------------------
    def find_owner(self, name: str) -> str:
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
