"""What is searched: groups of linears, and the levels and ranks to choose from for each."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from qra_search.plugins import describe_unknown
from qra_search.schemas import ExtraParameter, Group, LevelName, Plan, make_adapter
from qra_search.space.memory import (
    ADAPTER_BITS,
    UNQUANTIZED_BITS,
    Level,
    MemoryModel,
    TabulatedFormat,
    format_bytes,
    make_levels,
)

DEFAULT_BITS = (2, 3, 4, 8)
DEFAULT_RANKS = (4, 8, 16, 32)


class SearchSpace:
    """The groups with their allowed levels and ranks, and the exact bytes of every choice.

    Args:
        groups: at least one, with unique names.
        bits: levels to choose from: bit-widths, group-wise with 32 bits of scale and zero for every 64 weights, or
            `Level` objects with formats of their own; 16 leaves a linear unquantized.
        ranks: LoRA ranks to choose from; 0 means no adapter.
        fixed_bytes: bytes of everything that is not searched (embeddings, norms, head).
        extra: what else is chosen for the whole plan, by name, at no bytes: what the evaluator takes, such as
            `{"learning_rate": ExtraParameter(values=(0.001, 0.002), default=0.001)}`. Strategies that do not search it
            get the space without it.

    `levels` are by width, then as given, `bits` their names, `ranks` ascending.

    In arrays a plan is an int64 (2, G), its code: the indices of its choices in `bits`, then in `ranks`. `encode` and
    `decode` are the only way between the two. Extra parameters are further columns: a parameter's index, then 0.

    Raises:
        ValueError: choices contradict each other.
    """

    def __init__(
        self,
        *,
        groups: Iterable[Group],
        bits: Iterable[int | Level] = DEFAULT_BITS,
        ranks: Iterable[int] = DEFAULT_RANKS,
        fixed_bytes: int = 0,
        extra: Mapping[str, ExtraParameter] | None = None,
    ):
        self.extra = dict(extra or {})
        self.groups = tuple(groups)
        self.levels = make_levels(bits)
        self.bits: tuple[LevelName, ...] = tuple(level.name for level in self.levels)
        self.ranks = tuple(sorted(map(int, ranks)))
        if not self.ranks or self.ranks[0] < 0 or len(set(self.ranks)) != len(self.ranks):
            raise ValueError(
                f"the ranks of a space must be one or more distinct integers from 0 on, got {self.ranks}"
            )
        self.fixed_bytes = int(fixed_bytes)
        for group in self.groups:
            for what, own, known in (("bits", group.bits, self.bits), ("ranks", group.ranks, self.ranks)):
                if own is not None and (not own or not set(own) <= set(known)):
                    raise ValueError(
                        f"group {group.name!r}: its {what} must be among those of the space, {known}, got {own}"
                    )
        if twice := [name for name, count in Counter(self.names).items() if count > 1]:
            raise ValueError(
                f"each group of a space needs a name of its own, but several are called {', '.join(twice)}"
            )
        if not self._uniform_groups:
            raise ValueError("a space needs at least one group that is not an embedding")

    def __repr__(self) -> str:
        bits = ", ".join(map(str, self.bits))
        ranks = ", ".join(map(str, self.ranks))
        sizes = f"{format_bytes(self.memory.minimum)} to {format_bytes(self.memory.maximum)}"
        return f"SearchSpace({len(self)} groups, bits {bits}, ranks {ranks}, {sizes})"

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(group.name for group in self.groups)

    @property
    def weights(self) -> int:
        return sum(group.weights for group in self.groups)

    @cached_property
    def widths(self) -> np.ndarray:
        return np.array([level.width for level in self.levels])

    @cached_property
    def bits_allowed(self) -> np.ndarray:
        """bool (G, B): which of `bits` each group may take; of each extra parameter, which value."""
        own = np.array([[g.bits is None or b in g.bits for b in self.bits] for g in self.groups])
        counts = [len(parameter.values) for parameter in self.extra.values()]
        allowed = self.pad(own, max([len(self.bits), *counts]))
        for row, count in enumerate(counts, start=len(self)):
            allowed[row, :count] = True
        return allowed

    @cached_property
    def ranks_allowed(self) -> np.ndarray:
        """bool (G, R): which of `ranks` each group may take; of each extra parameter, the first."""
        own = np.array([[g.ranks is None or r in g.ranks for r in self.ranks] for g in self.groups])
        allowed = self.pad(own, len(self.ranks))
        allowed[len(self) :, 0] = True
        return allowed

    def pad(self, table: np.ndarray, columns: int) -> np.ndarray:
        """A table (G, B, ...) with a row of zeros for each extra parameter, and zeros in further columns."""
        below, right = len(self) + len(self.extra) - len(table), columns - table.shape[1]
        return np.pad(table, [(0, below), (0, right), *[(0, 0)] * (table.ndim - 2)])

    def level(self, name: LevelName) -> Level:
        """The level of a name, or the only one of a number of bits; raises ValueError, which names what there is."""
        level = self._find_level(name)
        if level is None:
            raise ValueError(describe_unknown("storage level", str(name), map(str, self.bits)))
        return level

    def mean_bits(self, plan: Plan) -> float:
        """Nominal bits of a plan's levels, averaged over the groups that uniform plans are made of."""
        return float(self.widths[self.encode(plan)[0, self._uniform_groups]].mean())

    def mean_rank(self, plan: Plan) -> float:
        return sum(plan.ranks[i] for i in self._uniform_groups) / len(self._uniform_groups)

    @cached_property
    def memory(self) -> MemoryModel:
        """Exact bytes of any plan, as tables."""
        shapes = [[(m.out_features, m.in_features) for m in group.linears] for group in self.groups]
        weight = [[sum(level.format.bytes(*s) for s in own) for level in self.levels] for own in shapes]
        a_rank = [sum(out + into for out, into in own) * ADAPTER_BITS // 8 for own in shapes]
        weights = self.pad(np.asarray(weight, dtype=np.int64), self.bits_allowed.shape[1])
        adapters = self.pad(np.outer(a_rank, self.ranks), len(self.ranks))
        allowed = self.bits_allowed[:, :, None] & self.ranks_allowed[:, None, :]
        return MemoryModel(weights, adapters, self.fixed_bytes, allowed)

    def memory_bytes(self, plan: Plan) -> int:
        """Exact resident bytes of a plan: quantized weights with metadata, adapters, and `fixed_bytes`."""
        return int(self.memory.bytes(self.encode(plan)))

    @cached_property
    def unquantized(self) -> SearchSpace:
        """The same groups, all left in 16 bits, with no adapters or those of the largest rank."""
        groups = [replace(group, bits=None, ranks=None) for group in self.groups]
        ranks = sorted({0, self.ranks[-1]})
        return self._copy(groups=groups, bits=(UNQUANTIZED_BITS,), ranks=ranks)

    def find_space(self, plan: Plan) -> SearchSpace:
        """The space that a plan is of: this one, or `unquantized`."""
        return self.unquantized if not self.contains(plan) and self.unquantized.contains(plan) else self

    def encode(self, plan: Plan) -> np.ndarray:
        """int64 (2, G): the indices of a plan's bits and ranks.

        Raises ValueError, which names the group, if the plan is not of this space.
        """
        return np.asarray(self.encode_many([plan])[0])

    def decode(self, code: np.ndarray) -> Plan:
        b, r = code.tolist()
        groups = len(self)
        extra = tuple(
            (name, parameter.values[i])
            for i, (name, parameter) in zip(b[groups:], self.extra.items(), strict=True)
        )
        return Plan(tuple(self.bits[i] for i in b[:groups]), tuple(self.ranks[i] for i in r[:groups]), extra)

    def encode_many(self, plans: Iterable[Plan]) -> np.ndarray:
        """int64 (N, 2, G): the codes of several plans; raises as `encode` does."""
        plans = list(plans)
        is_allowed = all(len(plan.bits) == len(self) for plan in plans)
        try:
            b = self._find_indices(self.bits, (plan.bits for plan in plans))
            r = self._find_indices(self.ranks, (plan.ranks for plan in plans))
            rows = np.arange(len(self))
            is_allowed &= self.bits_allowed[rows, b].all() and self.ranks_allowed[rows, r].all()
            extra = np.array([self._encode_extra(plan) for plan in plans], dtype=np.int64)
        except (KeyError, ValueError):
            is_allowed = False
        if not is_allowed:
            raise ValueError(next(filter(None, map(self._explain_mismatch, plans))))
        codes = np.stack([b, r], axis=1)
        if not self.extra:
            return codes
        return np.concatenate([codes, np.stack([extra, np.zeros_like(extra)], axis=1)], axis=2)

    def _encode_extra(self, plan: Plan) -> list[int]:
        """Indices of a plan's extra parameters, the default's of one that it does not name.

        Raises KeyError if it names what the space does not have, ValueError if it has another value.
        """
        chosen = {name: parameter.default for name, parameter in self.extra.items()} | dict(plan.extra)
        return [self.extra[name].values.index(value) for name, value in chosen.items()]

    @cached_property
    def without_extra(self) -> SearchSpace:
        return self.with_extra({})

    def with_extra(self, extra: Mapping[str, ExtraParameter]) -> SearchSpace:
        return self if extra == self.extra else self._copy(extra=extra)

    def _copy(self, **changes: Any) -> SearchSpace:
        known = {"bits": self.levels, "ranks": self.ranks, "fixed_bytes": self.fixed_bytes}
        return SearchSpace(**{"groups": self.groups, **known, **changes})

    def contains(self, plan: Plan) -> bool:
        return not self._explain_mismatch(plan)

    def uniform(self, bits: LevelName, rank: int) -> Plan | None:
        """The plan with one choice for every group; None if the space lacks it, or some group does not allow it.

        Raises ValueError if several levels have so many bits.
        """
        level = self._find_level(bits)
        if level is None:
            return None
        choices = [
            (self._widen_level(level, group), min(group.ranks or self.ranks))
            if group.is_embedding
            else (level.name, rank)
            for group in self.groups
        ]
        plan = Plan(*zip(*choices, strict=True))
        return plan if self.contains(plan) else None

    def uniform_choice(self, plan: Plan) -> tuple[LevelName, int] | None:
        """The level and rank of a uniform plan; None if it is none."""
        choices = {(plan.bits[i], plan.ranks[i]) for i in self._uniform_groups}
        if len(choices) != 1:
            return None
        choice = choices.pop()
        uniform = self.uniform(*choice)
        alike = uniform is not None and (plan.bits, plan.ranks) == (uniform.bits, uniform.ranks)
        return choice if alike else None

    def uniform_by_choice(self) -> dict[tuple[LevelName, int], Plan]:
        """Every uniform plan of the space by its level and rank, cheapest first."""
        pairs = itertools.product(self.bits, self.uniform_ranks)
        plans = {pair: plan for pair in pairs if (plan := self.uniform(*pair)) is not None}
        return dict(sorted(plans.items(), key=lambda choice: self.memory_bytes(choice[1])))

    def uniform_plans(self, budget_bytes: int | None = None) -> list[Plan]:
        plans = self.uniform_by_choice().values()
        return [plan for plan in plans if budget_bytes is None or self.memory_bytes(plan) <= budget_bytes]

    @cached_property
    def uniform_ranks(self) -> tuple[int, ...]:
        return tuple(r for i, r in enumerate(self.ranks) if self.ranks_allowed[self._uniform_groups, i].all())

    @cached_property
    def signature(self) -> str:
        """Hash of all that makes two spaces the same."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON, with the bytes of every shape at every level in place of its formats."""
        shapes = sorted({(m.out_features, m.in_features) for g in self.groups for m in g.linears})
        named = [level for level in self.levels if isinstance(level.name, str)]
        return {
            "groups": [
                make_adapter(Group).dump_python(group, exclude_defaults=True) for group in self.groups
            ],
            "bits": self.bits,
            "ranks": self.ranks,
            "fixed_bytes": self.fixed_bytes,
            "adapter_bits": ADAPTER_BITS,
            "shapes": shapes,
            "levels": {level.name: {"width": level.width, "backend": level.backend} for level in named},
            "bytes": {
                str(level.name): [int(level.format.bytes(*shape)) for shape in shapes]
                for level in self.levels
            },
            "extra": {name: parameter.to_dict() for name, parameter in self.extra.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SearchSpace:
        """The inverse of `to_dict`: a space of equal signature."""
        shapes = [tuple(shape) for shape in data["shapes"]]
        levels = []
        for name in data["bits"]:
            known = data.get("levels", {}).get(name, {"width": name})
            sizes = dict(zip(shapes, data["bytes"][str(name)], strict=True))
            levels.append(Level(name, **known, format=TabulatedFormat(sizes)))
        return cls(
            groups=[Group(**group) for group in data["groups"]],
            bits=levels,
            ranks=data["ranks"],
            fixed_bytes=data["fixed_bytes"],
            extra={name: ExtraParameter.from_dict(given) for name, given in data.get("extra", {}).items()},
        )

    @cached_property
    def _uniform_groups(self) -> list[int]:
        return [i for i, group in enumerate(self.groups) if not group.is_embedding]

    def _widen_level(self, level: Level, group: Group) -> LevelName:
        """The level itself, or the next wider, else the widest, that a group allows."""
        allowed = [own for own in self.levels if group.bits is None or own.name in group.bits]
        if level in allowed:
            return level.name
        return next((own for own in allowed if own.width >= level.width), allowed[-1]).name

    def _find_indices(self, known: Sequence[Any], choices: Iterable[Sequence[Any]]) -> np.ndarray:
        """int64 (N, G): where N lists of choices lie among the known ones."""
        index = {choice: i for i, choice in enumerate(known)}
        places = map(index.__getitem__, itertools.chain.from_iterable(choices))
        return np.fromiter(places, np.int64).reshape(-1, len(self))

    def _find_level(self, name: LevelName) -> Level | None:
        """By its name, or else by its width; either may be given as a text."""
        same = [level for level in self.levels if str(level.name) == str(name)]
        same = same or [level for level in self.levels if f"{level.width:g}" == str(name)]
        if len(same) > 1:
            ways = ", ".join(str(level.name) for level in same)
            raise ValueError(f"several storage formats have {name} bits: choose one of {ways}")
        return same[0] if same else None

    def _explain_mismatch(self, plan: Plan) -> str:
        if len(plan.bits) != len(self):
            return f"the plan has {len(plan.bits)} groups, the space has {len(self)}"
        for group, *chosen in zip(self.groups, plan.bits, plan.ranks, strict=True):
            allowed = (group.bits or self.bits, group.ranks or self.ranks)
            for what, value, own in zip(("bits", "rank"), chosen, allowed, strict=True):
                if value not in own:
                    return f"group {group.name!r}: {what} {value} is not one of {own}"
        for name, number in plan.extra:
            if name not in self.extra:
                return f"the plan has {name!r}, which is not searched in this space"
            if number not in self.extra[name].values:
                return f"{name} {number:g} is not one of {self.extra[name].values}"
        return ""
