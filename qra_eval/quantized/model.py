"""A model in which any plan can be put in place: every linear at every bit-width, and adapters on top."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from qra_backends import Backend
from torch import Tensor, nn

from qra_eval.models.embeddings import FoundTable, Table, find_tables, install_tables, uninstall_tables
from qra_eval.models.linears import find_linears, group_linears, resolve_granularity
from qra_eval.models.loaded import LoadedModel, compute_dtype
from qra_eval.quantized import adapters
from qra_eval.quantized.adapter_init import FITTED, AdapterInit
from qra_eval.quantized.blocks import Blocks
from qra_eval.quantized.build import build
from qra_eval.quantized.calibration import LayerMoments, input_moments
from qra_eval.quantized.initialisation import Initialiser
from qra_eval.quantized.room import give_back_freed_memory, weight_cache_bytes
from qra_eval.quantized.space import model_space, table_levels
from qra_eval.quantized.weight_cache import QuantizedWeightCache, bank_folder, tensor_bytes, weight_bytes
from qra_eval.tasks.batches import Batch, passed_together
from qra_eval.tasks.rows import Rows
from qra_search.config import QuantizationConfig, SpaceConfig, TrainingConfig
from qra_search.space.levels import LevelName
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.space import Group, Plan, SearchSpace

log = logging.getLogger(__name__)

AUTO_TABLE_BITS = (3, 4, 5, 6, UNQUANTIZED_BITS)
"""Of embeddings and head unless the config says: calibrated, SmolLM2's predictions diverge by 0.05, 0.01, 0.002 and
0.001 nats at these widths, and by more than at 6 at 8 bits with one scale a row (benchmarks/results/README.md)."""
CALIBRATION_ROWS = 128
"""Rows whose activations calibrated backends see; their forward pass is charged to the prior."""


class QuantizedModel:
    """Every linear is quantized once at every bit-width (`Bank`); a plan is put in place by swapping what changed.

    On the device are norms, the plan in its packed form (embeddings and head in it, if they are searched), and
    adapters. The unquantized weights stay where the checkpoint is mapped, on the host, and visit the device a layer at
    a time (`blocks`).

    If `weight_cache` bytes hold all weights dequantized, linears multiply by these, which gives the numbers of
    dequantize-then-multiply without doing the former at every step. They may then be in another dtype (`compute`) than
    the model is stored in: the weights are the same numbers, only sums are rounded otherwise.

    Quantizing waits for the first call that needs it: hours may lie between a look at the space and that.

    Args:
        loaded: the model, frozen; the linears of its layers may be on the host.
        backend: that of `quantization`.
        rows: of the task; the first of its calibration split calibrate backends and adapters that ask for it.
        settings: of training: alpha, dropout and batches.
        compute: `auto` or a dtype's name; if weights do not fit in the cache, the dtype is as stored.
        weight_cache: bytes for dequantized weights; see `qra_eval.quantized.room`.

    Attributes:
        space: plans, and their exact bytes when the model is at rest.
        linears: the searched ones, by name.
        tables: embedding and head, or the one table of both, by name, if they are searched.
        levels, table_levels: at which linears are quantized, and tables.
        layer_of: the decoder layer of each.
        blocks: the decoder layers, in the dtype that is computed in.
        materialised: whether dequantized weights are kept ready.
        room: bytes that they may take together.
        applied: plan and initialisation of the last `apply`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        backend: Backend,
        quantization: QuantizationConfig,
        space: SpaceConfig,
        rows: Rows,
        settings: TrainingConfig,
        *,
        device: torch.device,
        compute: str = "auto",
        weight_cache: int | str = "auto",
        progress: Callable[[str, int, int], None] | None = None,
    ):
        self.loaded, self.device, self.progress = loaded, device, progress
        self.model = cast(Any, loaded.model)
        self.rows, self.settings, self.quantization = rows, settings, quantization
        self.backend = backend
        found = find_linears(self.model)
        self.granularity = resolve_granularity(found, space.granularity)
        self.linears = {f.name: f.module for f in found}
        self.layer_of = {f.name: f.layer or 0 for f in found}
        self.tables = _searched_tables(self.model, quantization)
        dense = weight_bytes([*self.linears.values(), *(t.linear for t in self.tables.values())])
        self.dtype: torch.dtype = self.model.dtype
        self.compute = compute_dtype(device) if compute == "auto" else getattr(torch, compute)
        if compute == "auto" and self.compute.itemsize < self.dtype.itemsize:
            self.compute = self.dtype  # who keeps a model in float32 wants its digits
        room = weight_cache_bytes(weight_cache, device)
        self.materialised = dense * self.compute.itemsize // self.dtype.itemsize <= room
        self.room = room if self.materialised else 0
        self.blocks = Blocks(self.model, device, self.compute)
        if not self.materialised:
            self.compute = self.dtype
            if device.type == "cpu":
                give_back_freed_memory()
        groups = group_linears(found, self.granularity)
        wanted = AUTO_TABLE_BITS if quantization.embeddings == "auto" else quantization.embeddings
        offered = {n: (t.linear, table_levels(wanted, backend, t.linear)) for n, t in self.tables.items()}
        self.space = model_space(
            groups, self.granularity, space, self.backend, fixed_bytes=tensor_bytes(self.model) - dense,
            tables=offered, depth=len(self.blocks),
        )  # fmt: skip
        own, of_tables = (
            _levels(self.space, [g for g in self.space.groups if g.is_embedding == is_embedding])
            for is_embedding in (False, True)
        )
        self.levels = tuple(b for b in own if b != UNQUANTIZED_BITS)
        self.table_levels = tuple(b for b in of_tables if b != UNQUANTIZED_BITS)
        self._bank = QuantizedWeightCache(
            {**self.linears, **{name: linear for name, (linear, _) in offered.items()}},
            backend, own, bank_folder(quantization.cache), self.identity,
            calibration=self._calibration_hash(), layers=self.layer_of | dict.fromkeys(offered, len(self.blocks)),
            levels={len(self.blocks): of_tables},
            device=device, room=self.room, compute=self.compute,
        )  # fmt: skip
        self._wrapped: dict[str, adapters.AdaptedLinear] | None = None
        self._placed: dict[str, Table] = {}
        self._in_place: dict[str, tuple[Any, ...]] = {}
        self.applied: tuple[Plan, str]
        self._rest: list[Tensor] = []
        self._stored: list[Tensor] | None = None
        self._starts: dict[str, AdapterInit] = {}
        self._initialisers: dict[str, Initialiser] = {}

    # -- made at the first call ----------------------------------------------------------------
    @property
    def bank(self) -> QuantizedWeightCache:
        """Every linear at every bit-width; quantized, or read from the cache, at the first call."""
        self.prepare()
        return self._bank

    @property
    def wrapped(self) -> dict[str, adapters.AdaptedLinear]:
        """The model's linears with room for adapters, by name."""
        return self.prepare()

    def quantized(self) -> bool:
        """Whether the cache has every linear at every bit-width."""
        return not self._bank.missing()

    def prepare(self) -> dict[str, adapters.AdaptedLinear]:
        """Quantize, or read what an earlier run quantized, and make room for adapters."""
        if self._wrapped is None:
            head = next((name for name, table in self.tables.items() if table.head), None)
            starts = next((self.starts(kind) for kind in self.settings.inits if kind in FITTED), None)
            build(self._bank, self.blocks, self.calibration_batches(), self.progress, starts, head=head)
            self._wrapped = adapters.install(self.model, list(self.linears))
            self._placed = install_tables(self.model, self.backend) if self.tables else {}
            searched = {id(t) for m in self.linears.values() for t in m.parameters()}
            searched |= {id(table.own) for table in self._placed.values()}
            # Buffers, such as rotary frequencies, lose what matters in fewer bits, and cost nothing in more.
            narrower = self.compute.itemsize < self.dtype.itemsize
            tensors = [*self.model.parameters(), *(() if narrower else self.model.buffers())]
            self._rest = [t for t in tensors if t.dtype == self.dtype and id(t) not in searched]
            self._stored = [t.data for t in self._rest] if narrower else None
            self._put_rest_in(self.compute)
        return self._wrapped

    def starts(self, kind: str) -> AdapterInit:
        """Fitted starts of adapters of one of the kinds in `FITTED`, which may be missing."""
        if kind not in self._starts:
            calibration, layers = self.rows.hash(calibration=CALIBRATION_ROWS), set(self.layer_of.values())
            ranks = self.space.ranks
            taken = min((rank for rank in ranks if rank), default=0) if kind == "caldera" else 0
            self._starts[kind] = AdapterInit(self._bank, max(ranks), calibration, layers, taken=taken)
        return self._starts[kind]

    def initialiser(self, kind: str) -> Initialiser:
        """What gives bases and factors by one kind of initialisation; made at the first call.

        Making it may pass calibration rows through the unquantized model, so no plan is in place afterwards.
        """
        if kind not in self._initialisers:
            starts = self.starts(kind) if kind in FITTED else None
            if starts is not None and starts.missing():
                self.unquantize()
                build(self.bank, self.blocks, self.calibration_batches(), self.progress, starts)
            self._initialisers[kind] = Initialiser(
                kind, self.bank, self.backend, alpha=self.settings.alpha, max_rank=max(self.space.ranks), starts=starts,
                inputs=self._inputs if kind == "eva" or (kind == "pissa" and self.backend.calibrated) else None,
            )  # fmt: skip
        return self._initialisers[kind]

    @property
    def identity(self) -> str:
        """Of the weights, and of the dtype that they are stored in."""
        return f"{self.loaded.fingerprint}-{self.dtype}"

    # -- plans in place ------------------------------------------------------------------------
    def apply(
        self, plan: Plan, seed: int, init: str, *, materialised: bool | None = None, keep_adapters: bool = False,
        keep_scales: bool = False,
    ) -> None:  # fmt: skip
        """Put a plan in place: bases from the bank, adapters as their initialisation gives them; unless they are to be
        kept, and scales as the last training left them."""
        start = self.initialiser(init)
        fast = self.materialised if materialised is None else materialised
        self.applied = plan, init
        for group, bits, rank in zip(self.space.groups, plan.bits, plan.ranks, strict=True):
            if group.name in self.tables:
                self.put_table(group.name, bits, fast=fast)
                continue
            for linear in group.linears:
                wrapper = self.wrapped[linear.name]
                if not keep_scales:
                    wrapper.trained = wrapper.groups = None
                self.put_base(start, linear.name, bits, rank, fast)
                if keep_adapters:
                    continue
                if rank == 0:
                    wrapper.set_adapter(None, None, 0.0)
                    continue
                A, B = start.factors(linear.name, bits, rank, seed)
                scaling = self.settings.alpha / rank
                wrapper.set_adapter(A.to(self.device), B.to(self.device), scaling, self.settings.dropout)

    def put_base(self, start: Initialiser, name: str, bits: LevelName, rank: int, fast: bool) -> None:
        """Put a linear's base in place, if it is not there already: a plan's neighbour differs in a few linears."""
        wrapper = self.wrapped[name]
        wanted = (bits, fast, *start.base(name, bits, rank))
        if self._in_place.get(name) == wanted and wrapper.groups is None:
            return
        self._in_place.pop(name, None)
        wrapper.set_base()  # what was there goes before the next comes
        trained = wrapper.groups is not None
        if not fast:
            wrapper.set_base(module=self.base_module(start, name, bits, rank))
        elif not trained:
            wrapper.set_base(weight=start.weight(name, bits, rank))
        else:
            wrapper.set_base(weight=self.backend.dequantize(self.base_module(start, name, bits, rank)).to(self.compute))
        if not trained:  # else it is no other plan's
            self._in_place[name] = wanted

    def base_module(self, start: Initialiser, name: str, bits: LevelName, rank: int) -> nn.Module:
        """The base of a linear as a module, with the scales and offsets that training left."""
        module, groups = start.module(name, bits, rank), self.wrapped[name].groups
        return module if groups is None else self.backend.retrained(module, groups)

    def put_table(self, name: str, bits: LevelName | None, *, fast: bool = True) -> None:
        """Put a table in place at a level; None: as it was loaded. Only if it is not in place already."""
        wanted, table = (bits, fast), self._placed[name]
        if self._in_place.get(name) == wanted:
            return
        self._in_place.pop(name, None)
        table.set_base()  # what was there goes before the next comes
        if bits is None:
            return
        if fast:
            table.set_base(weight=self.bank.weight(name, bits))
        else:
            table.set_base(module=self.bank.module(name, bits))
        self._in_place[name] = wanted

    def unquantize(self) -> None:
        """The model as it was loaded, without quantization and adapters; to be run by `blocks`."""
        for wrapper in self.wrapped.values():
            wrapper.set_base()
            wrapper.set_adapter(None, None, 0.0)
            wrapper.trained = wrapper.groups = None
        for table in self._placed.values():
            table.set_base()
        self._in_place = {}

    @contextmanager
    def unquantized(self) -> Iterator[None]:
        """The model as it was loaded, computing as evaluations do; nothing is quantized for it."""
        if self._wrapped is not None:
            self.unquantize()
        with self.blocks.streamed():
            yield

    @contextmanager
    def as_stored(self, plan: Plan, init: str) -> Iterator[Any]:
        """The model as a run's folder gives it: quantized modules, stored dtype; for as long as the context lasts."""
        self.apply(plan, 0, init, materialised=False, keep_adapters=True, keep_scales=True)
        self._put_rest_in(self.dtype)
        try:
            yield self.model
        finally:
            self._put_rest_in(self.compute)
            self.apply(plan, 0, init, keep_adapters=True, keep_scales=True)

    @contextmanager
    def in_float32(self) -> Iterator[Blocks]:
        """The layers of the unquantized model, computing in float32; for as long as the context lasts."""
        self.unquantize()
        self._put_rest_in(torch.float32)
        try:
            yield Blocks(self.model, self.device, torch.float32)
        finally:
            self._put_rest_in(self.compute)

    @contextmanager
    def released(self) -> Iterator[None]:
        """Nothing of the model on the device but adapters, nor anything kept dequantized; bases are gone afterwards."""
        for wrapper in self.wrapped.values():
            wrapper.set_base()
        for table in self._placed.values():
            table.set_base()
        self._in_place = {}
        for bank in (self._bank, *(starts.bases for starts in self._starts.values())):
            bank.forget()
        tensors = [*self.model.parameters(), *self.model.buffers()]
        own = {id(factor) for factor in adapters.trainable(self.wrapped)}
        moved = [tensor for tensor in tensors if tensor.device.type != "cpu" and id(tensor) not in own]
        for tensor in moved:
            tensor.data = tensor.data.cpu()
        if moved:
            torch.cuda.empty_cache()
        try:
            yield
        finally:
            for tensor in moved:
                tensor.data = tensor.data.to(self.device)

    def close(self) -> None:
        """Give the model its own linears again."""
        if self._wrapped is not None:
            for table in self._placed.values():
                table.set_base()
            uninstall_tables(self.model)
            adapters.uninstall(self.model, self._wrapped)

    def calibration_batches(self) -> list[Batch]:
        """The rows that calibrate."""
        return passed_together(self.rows("calibration", CALIBRATION_ROWS))

    # -- helpers -------------------------------------------------------------------------------
    def _calibration_hash(self) -> str:
        return self.rows.hash(calibration=CALIBRATION_ROWS) if self.backend.calibrated else ""

    def _inputs(self) -> Iterator[tuple[list[str], LayerMoments]]:
        self.unquantize()
        wrapped: dict[str, nn.Module] = dict(self.wrapped)
        return input_moments(self.blocks, wrapped, self.layer_of, self.calibration_batches())

    def _put_rest_in(self, dtype: torch.dtype) -> None:
        """All that is not quantized, in a dtype; in its own again it has every digit that it had."""
        kept = self._stored if dtype == self.dtype else None
        for i, tensor in enumerate(self._rest):
            tensor.data = tensor.data.to(dtype) if kept is None else kept[i]


def _searched_tables(model: Any, quantization: QuantizationConfig) -> dict[str, FoundTable]:
    """The tables that have levels to choose from; none if they are left as they are.

    Raises:
        ValueError: levels are asked for, and the model's embeddings are of a kind that cannot be quantized.
    """
    if quantization.embeddings == (UNQUANTIZED_BITS,):
        return {}
    try:
        return {table.name: table for table in find_tables(model)}
    except ValueError as error:
        if quantization.embeddings != "auto":
            raise
        log.info("embeddings are left as they are: %s", error)
        return {}


def _levels(space: SearchSpace, groups: Sequence[Group]) -> tuple[LevelName, ...]:
    """The levels that any of some groups may take."""
    allowed = {b for group in groups for b in group.bits or space.bits}
    return tuple(b for b in space.bits if b in allowed)
