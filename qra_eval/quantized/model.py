"""A model with the linears that plans ask for, each quantized once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, cast

import psutil
import torch
from qra_backends import Backend
from torch import nn

from qra_eval.models.embeddings import find_embeddings, place_embeddings
from qra_eval.models.linears import Granularity, find_linears, group_linears, resolve_granularity
from qra_eval.models.loaded import LoadedModel, choose_compute_dtype, hash_config
from qra_eval.quantized.bank import Bank, count_tensor_bytes, get_bank_folder
from qra_eval.quantized.blocks import Blocks
from qra_eval.quantized.build import fill_bank
from qra_eval.quantized.calibration import WEIGHTINGS, get_expert_kind
from qra_eval.quantized.space import AUTO_TABLE_BITS, list_plan_levels, list_table_levels, make_model_space
from qra_eval.tasks.base import Rows
from qra_eval.tasks.batches import PASS_MULTIPLE, Batch, make_pass_batches
from qra_search.errors import BadInput
from qra_search.schemas import Group, LevelName, Plan
from qra_search.sections import QuantizationConfig, SpaceConfig, TrainingConfig
from qra_search.space.memory import UNQUANTIZED_BITS, format_bytes, parse_bytes
from qra_search.space.space import SearchSpace

log = logging.getLogger(__name__)

MIN_ROWS, MEASURED_ROWS, MAX_ROWS = 8, 128, 1024
"""Train rows that pass, at least and at most, and those whose mean length tells how many tokens a row has. With half of
the default's tokens 4 bits of SmolLM2 lose 0.007 nats (benchmarks/results/study/codes.jsonl)."""
PLAN_TOKENS = 4096
"""Tokens for the sensitivities, at most. Damage by these differs from that by four times as many by 0.07
in logarithms, where linears differ by 1. Plans lose at most 0.9% of their lead, by half as many tokens 1.4%
(`python -m benchmarks.study.damage --table`)."""
GPU_CACHE_SHARE, HOST_CACHE_SHARE = 0.4, 0.25
"""Share of free memory for dequantized weights, of a GPU and of the host: the rest is for the plan, adapters,
activations and logits, and on a host for other processes."""


class QuantizedModel:
    """A loaded model, its search space, and its linears at the levels that plans asked for (`bank`).

    Plans are put in place by a `PlanSwitcher`. The unquantized weights stay where the checkpoint is mapped, on the
    host, and visit the device a layer at a time (`blocks`).

    If `dequantized_cache` bytes hold all weights dequantized, linears multiply by these, maybe in another dtype
    (`compute`) than the model is stored in.

    Args:
        loaded: the model, frozen; the linears of its layers may be on the host.
        compute: `auto` or a dtype's name; `auto` is the dtype as stored if weights do not fit in the cache.
        dequantized_cache: bytes for dequantized weights, as given (`2GiB`, 0), or a share of what is free (`auto`).

    Attributes:
        linears: the searched ones, by name.
        tables: embedding and head, or the one table of both, by name, if they are searched.
        levels, table_levels: at which linears are quantized, and tables.
        layer_of: the decoder layer of each.
        keeps_dequantized: whether linears multiply by dequantized weights.
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
        dequantized_cache: int | str = "auto",
        progress: Callable[[str, int, int], None] | None = None,
    ):
        self.loaded, self.device, self.progress = loaded, device, progress
        self.model = cast(Any, loaded.model)
        self.rows, self.settings, self.quantization, self.backend = rows, settings, quantization, backend
        self._found = found = find_linears(self.model)
        self.granularity = resolve_granularity(found, space.granularity)
        self.linears = {f.name: f.module for f in found}
        self.layer_of = {f.name: f.layer for f in found}
        self.weighting = WEIGHTINGS[quantization.calibration]
        self.tables = _find_searched_tables(self.model, quantization)
        if loaded.weights:
            place_embeddings(self.model, device, self.tables)
        dense = sum(linear.weight.nbytes for linear in [*self.linears.values(), *self.tables.values()])
        self.dtype: torch.dtype = self.model.dtype
        self.asked, self.keeps_dequantized = compute, True
        room = count_cache_bytes(dequantized_cache, device)
        kept = dense * self.compute.itemsize // self.dtype.itemsize
        self.blocks = Blocks(self.model, device, self.compute)
        self.keeps_dequantized = kept <= room
        could_keep = device.type == "cpu" and 2 * kept <= count_free_bytes(device)
        if could_keep and dequantized_cache == "auto" and not self.keeps_dequantized:
            log.warning(
                "dequantized weights need %s, more than a quarter of the free memory, so each weight is decoded "
                "at every use, which may take twice as long. Keep them with --set model.dequantized_cache=%dMiB",
                format_bytes(kept),
                -(-kept >> 20),
            )
        self.space = self.make_space(space, backend, self.granularity, self.tables, quantization.embeddings)
        self.levels, self.table_levels = (
            _list_levels(self.space, [g for g in self.space.groups if g.is_embedding == is_embedding])
            for is_embedding in (False, True)
        )
        self.bank = Bank(
            {**self.linears, **self.tables},
            backend,
            get_bank_folder(quantization.cache),
            self.identity,
            calibration=self.calibration,
            layers=self.layer_of | dict.fromkeys(self.tables, len(self.blocks)),
            device=device,
        )

    def make_space(
        self,
        config: SpaceConfig,
        backend: Backend,
        granularity: Granularity,
        tables: Mapping[str, nn.Linear],
        table_bits: Sequence[float] | Literal["auto"],
    ) -> SearchSpace:
        if table_bits == "auto":
            table_bits = AUTO_TABLE_BITS
        dense = sum(linear.weight.nbytes for linear in [*self.linears.values(), *tables.values()])
        return make_model_space(
            group_linears(self._found, granularity),
            granularity,
            config,
            backend,
            fixed_bytes=count_tensor_bytes(self.model) - dense,
            depth=len(self.blocks),
            tables={name: (t, list_table_levels(table_bits, backend, t)) for name, t in tables.items()},
        )

    def quantize_plan(self, plan: Plan) -> None:
        """Quantize the linears that a plan asks for and the bank lacks, with the model as it was loaded."""
        wanted, batches = list_plan_levels(self.space.find_space(plan), plan), self.calibration_batches()
        head = next(reversed(self.tables), None)
        fill_bank(self.bank, wanted, self.blocks, batches, self.progress, weighting=self.weighting, head=head)

    def is_plan_quantized(self, plan: Plan) -> bool:
        return not self.bank.find_missing(list_plan_levels(self.space.find_space(plan), plan))

    def is_quantized(self) -> bool:
        """Whether the bank has every linear at some level, so that any other plan needs a part of them at most."""
        levels = dict.fromkeys(self.linears, self.levels) | dict.fromkeys(self.tables, self.table_levels)
        return all(
            any(bits == UNQUANTIZED_BITS or self.bank.get_path(name, bits).is_file() for bits in some)
            for name, some in levels.items()
        )

    def count_trained(self, bits: LevelName, out_features: int, in_features: int) -> int:
        """Scales and offsets of a linear that are trained along with the adapters, by the settings."""
        if bits == UNQUANTIZED_BITS or not self.settings.scales:
            return 0
        numbers = self.backend.count_trainable(bits, out_features, in_features)
        return numbers if self.settings.scales != "auto" or numbers <= out_features else 0

    @property
    def identity(self) -> str:
        """Text that identifies the weights, their stored dtype, and what the config says of computing."""
        return f"{self.loaded.fingerprint}-{hash_config(self.model)}-{self.dtype}"

    @property
    def calibration(self) -> str:
        """Text that identifies the calibration rows, their weighting, and the dtype of their pass."""
        return f"{self.rows.hash(train=self.calibration_row_count)}-{self.weighting}-{self.blocks.compute}"

    @cached_property
    def calibration_row_count(self) -> int:
        return self._count_rows_for_tokens(self.quantization.calibration_tokens)

    @cached_property
    def plan_rows(self) -> int:
        return min(self.calibration_row_count, self._count_rows_for_tokens(PLAN_TOKENS))

    @property
    def is_pass_shared(self) -> bool:
        """Whether the codes are chosen on the plan's rows, so that one pass gives the moments for both."""
        return self.backend.calibrated and self.calibration_row_count == self.plan_rows

    def _count_rows_for_tokens(self, tokens: int) -> int:
        rows = self.rows("train", MEASURED_ROWS)
        return max(MIN_ROWS, min(tokens * len(rows) // sum(map(len, rows)), MAX_ROWS))

    def calibration_batches(self) -> list[Batch]:
        return self._make_batches(self.calibration_row_count)

    def plan_batches(self) -> list[Batch]:
        return self._make_batches(self.plan_rows)

    def _make_batches(self, count: int) -> list[Batch]:
        # Experts read tokens without their places: what is padding could not be left out of their moments.
        has_experts = any(get_expert_kind(name) != name for name in self.linears)
        return make_pass_batches(self.rows("train", count), 1 if has_experts else PASS_MULTIPLE)

    @property
    def compute(self) -> torch.dtype:
        """The dtype of products: as was asked for; `auto` is the faster one, though no narrower than the weights are
        stored in, and the stored one with weights that are decoded at each use."""
        if self.asked != "auto":
            return cast(torch.dtype, getattr(torch, self.asked))
        fast = choose_compute_dtype(self.device)
        is_narrower = fast.itemsize < self.dtype.itemsize  # who keeps float32 wants its digits
        return self.dtype if is_narrower or not self.keeps_dequantized else fast


def _find_searched_tables(model: Any, quantization: QuantizationConfig) -> dict[str, nn.Linear]:
    """The tables that have levels to choose from; none if they are left as they are."""
    if quantization.embeddings == (UNQUANTIZED_BITS,):
        return {}
    tables = find_embeddings(model)
    if not tables:
        ends = model.get_input_embeddings(), model.get_output_embeddings()
        kinds = " and ".join(type(end).__name__ for end in ends)
        message = f"embeddings of a {type(model).__name__} ({kinds}) cannot be quantized"
        if quantization.embeddings != "auto":
            raise BadInput(f"{message}: use --set quantization.embeddings=16")
        log.info("%s and stay as they are", message)
    return tables


def _list_levels(space: SearchSpace, groups: Sequence[Group]) -> tuple[LevelName, ...]:
    """The levels below 16 bits that any of some groups may take."""
    allowed = {b for group in groups for b in group.bits or space.bits} - {UNQUANTIZED_BITS}
    return tuple(b for b in space.bits if b in allowed)


def count_free_bytes(device: torch.device) -> int:
    """Bytes that are free on a device now; of the host's memory what is available without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def count_cache_bytes(given: int | str, device: torch.device) -> int:
    """Bytes for dequantized weights on a device: as given (`2GiB`, 0), or of what is free now (`auto`)."""
    if given != "auto":
        return 0 if str(given) == "0" else parse_bytes(given)
    return int(count_free_bytes(device) * (HOST_CACHE_SHARE if device.type == "cpu" else GPU_CACHE_SHARE))
