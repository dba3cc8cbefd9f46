"""Plans of other tools, read into a search space: to start a search from, or to be evaluated."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qra_search import plugins
from qra_search.space.groups import Group
from qra_search.space.levels import LevelName
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.serialization import PLAN_FORMAT, choices_in
from qra_search.space.space import Plan, SearchSpace

Rounding = Literal["refuse", "nearest", "up", "down"]
ROUNDING: tuple[str, ...] = ("refuse", "nearest", "up", "down")

BitsOf = Callable[[str], float | None]
"""Bits of a linear by its name; None if the file says nothing of it."""


@dataclass(frozen=True)
class Foreign:
    """What a file of another tool says.

    Attributes:
        bits_of: bits of a linear by name; None if nothing is said.
        names: the linears that the file names one by one; None if it has patterns.
        ranks: ranks by linear, if the tool has any.
        levels: names of storage levels by linear, if the tool has any: taken if the space has them.
    """

    bits_of: BitsOf
    names: tuple[str, ...] | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    levels: Mapping[str, LevelName] = field(default_factory=dict)


@dataclass(frozen=True)
class Imported:
    """A plan read from another tool's file, and what had to be decided to make it one; one sentence each."""

    plan: Plan
    notes: tuple[str, ...]


def importers() -> tuple[str, ...]:
    """Names of the formats that plans are read from."""
    return tuple(plugins.names("importers"))


def import_plan(
    path: str | Path,
    format: str,
    space: SearchSpace,
    *,
    rank: int | None = None,
    default_bits: int | None = None,
    rounding: Rounding = "refuse",
) -> Imported:
    """The plan of another tool's file, in a search space.

    Args:
        path: the file (for `gptqmodel` also a checkpoint's folder).
        format: one of `importers()`.
        rank: of every group, as those tools have no adapters; default: the smallest that the space has.
        default_bits: of linears that the file does not name; without it such a file is refused.
        rounding: what to do with bits that a group does not allow, and with groups whose linears differ (whose bits are
            then their mean by weights): refuse, or take the nearest (the wider of two), the next wider, or the next
            narrower that is allowed.

    Raises:
        ValueError: not such a file, another model's, or a choice that the space has not; the message says which.
    """
    if rounding not in ROUNDING:
        raise ValueError(f"rounding must be one of {', '.join(ROUNDING)}, got {rounding!r}")
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    foreign: Foreign = plugins.load("importers", format)(path)
    return _plan(foreign, space, _Rules(str(path), rank, default_bits, rounding))


# -- formats -------------------------------------------------------------------------------------
def read_autoround(path: Path) -> Foreign:
    """AutoRound's `layer_config`: bits by linear, or by a part of its name; also inside a `quantization_config`."""
    data = _object(path)
    config = data.get("quantization_config", data)
    default = config.get("bits") if "quant_method" in config else None
    layers = config.get("extra_config") or config.get("layer_config") or (config if default is None else {})
    rules = {name: _bits_in(path, name, value, default) for name, value in layers.items()}

    def bits_of(name: str) -> float | None:
        if name in rules:
            return rules[name]
        # A key may also be a part of the name, or a pattern; of several that match, the longest says most.
        hits = [key for key in rules if key in name or _matches(path, key, name)]
        return rules[max(hits, key=len)] if hits else default

    return Foreign(bits_of)


def read_gptqmodel(path: Path) -> Foreign:
    """GPTQModel's `dynamic` rules: the first pattern that matches a name decides, `-:` leaves it unquantized."""
    if path.is_dir():
        found = [path / name for name in ("quantize_config.json", "config.json") if (path / name).is_file()]
        if not found:
            raise ValueError(f"{path} holds neither quantize_config.json nor config.json")
        path = found[0]
    data = _object(path)
    config = data.get("quantization_config", data)
    if "dynamic" not in config and not all(isinstance(value, dict) for value in config.values()):
        config = {"dynamic": {}, **config}
    rules = config.get("dynamic", config) or {}
    default = config.get("bits") if "dynamic" in config else None

    def bits_of(name: str) -> float | None:
        for pattern, value in rules.items():
            if pattern.startswith("-:"):
                if _matches(path, pattern[2:], name):
                    return UNQUANTIZED_BITS
            elif _matches(path, pattern.removeprefix("+:"), name):
                return _bits_in(path, pattern, value, default)
        return default

    return Foreign(bits_of)


def read_plan(path: Path) -> Foreign:
    """A plan.json of this project, of another space of the same linears."""
    data = _object(path)
    if data.get("format") != PLAN_FORMAT:
        raise ValueError(f"{path} is of format {data.get('format')!r}, {PLAN_FORMAT!r} is needed")
    choices_in(data)
    try:
        found = {name: group for group in data["groups"] for name in group["linears"]}
        bits = {name: float(group.get("width", group["bits"])) for name, group in found.items()}
        ranks = {name: int(group["rank"]) for name, group in found.items()}
    except (LookupError, TypeError, ValueError):
        raise ValueError(f"{path}: a group lacks its linears, or its bits or rank are no number") from None
    return Foreign(bits.get, tuple(bits), ranks, {name: group["bits"] for name, group in found.items()})


# -- into the space ------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Rules:
    """How a choice that the space does not have becomes one that it has; see `import_plan`."""

    source: str
    rank: int | None
    default_bits: int | None
    rounding: Rounding

    def nearest(self, wanted: float, allowed: Sequence[int]) -> int:
        """The allowed number that the wanted one is rounded to."""
        if self.rounding == "up":
            return min((b for b in allowed if b >= wanted), default=max(allowed))
        if self.rounding == "down":
            return max((b for b in allowed if b <= wanted), default=min(allowed))
        return min(allowed, key=lambda b: (abs(b - wanted), -b))


def _plan(foreign: Foreign, space: SearchSpace, rules: _Rules) -> Imported:
    """The foreign choices as a plan of the space."""
    followed = [group for group in space.groups if _follows(foreign, group)]
    bits_of, notes = _bits_of_linears(foreign, followed, rules)
    bits, ranks = [], []
    mixed: list[str] = []
    rounded: list[str] = []
    for group in space.groups:
        if group not in followed:  # a file that says nothing of an embedding leaves it as it is
            bits.append((group.bits or space.bits)[-1])
            ranks.append(min(group.ranks or space.ranks))
            continue
        level, problem = _level(foreign, group, space, bits_of, rules)
        if problem:
            (mixed if len({bits_of[linear.name] for linear in group.linears}) > 1 else rounded).append(problem)
        bits.append(level)
        ranks.append(_rank(foreign, group, space, rules))
    notes += _rounding_notes("groups have linears of different bits, which share one choice here", mixed, rules)
    notes += _rounding_notes("groups have bits that are not allowed here", rounded, rules)
    plan = Plan(tuple(bits), tuple(ranks))
    space.encode(plan)
    return Imported(plan, tuple(notes))


def _follows(foreign: Foreign, group: Group) -> bool:
    """Whether a group takes its choice from the file: patterns and defaults are for the linears of layers only."""
    return not group.is_embedding or all(linear.name in (foreign.names or ()) for linear in group.linears)


def _bits_of_linears(foreign: Foreign, groups: Sequence[Group], rules: _Rules) -> tuple[dict[str, float], list[str]]:
    """Bits by linear, and notes on what the file names too much or too little."""
    found = {linear.name: foreign.bits_of(linear.name) for group in groups for linear in group.linears}
    named, notes = set(foreign.names or ()), []
    strange = sorted(named - set(found))
    if strange and len(strange) == len(named):
        raise ValueError(
            f"{rules.source} is of another model: it names {strange[0]!r}, and this one has such as {min(found)!r}"
        )
    if strange:
        notes.append(f"{len(strange)} of the file's entries are not searched here, such as {strange[0]}: left out")
    missing = [name for name, value in found.items() if value is None]
    if missing and rules.default_bits is None:
        raise ValueError(
            f"{rules.source} says nothing of {len(missing)} linears, such as {missing[0]}: give the bits that these "
            "are to have"
        )
    if missing:
        notes.append(
            f"{len(missing)} linears are not in the file, such as {missing[0]}: they got {rules.default_bits} bits"
        )
    default = float(rules.default_bits or 0)
    return {name: default if value is None else float(value) for name, value in found.items()}, notes


def _level(
    foreign: Foreign, group: Group, space: SearchSpace, bits_of: Mapping[str, float], rules: _Rules
) -> tuple[LevelName, str]:
    """The level of a group, and what had to be rounded; empty if nothing had to be."""
    allowed = [level for level in space.levels if group.bits is None or level.name in group.bits]
    each = [bits_of[linear.name] for linear in group.linears]
    mixed = len(set(each)) > 1
    wanted = float(np.average(each, weights=[linear.weights for linear in group.linears])) if mixed else each[0]
    named = {foreign.levels.get(linear.name) for linear in group.linears}
    level = next((level for level in allowed if named == {level.name}), None)
    if level is None:
        width = rules.nearest(wanted, [level.width for level in allowed])
        level = next(level for level in allowed if level.width == width)
    if mixed:
        return level.name, f"{group.name} ({', '.join(f'{v:g}' for v in sorted(set(each)))})"
    if level.width != wanted:
        return level.name, f"{group.name}: {wanted:g} bits, allowed are {', '.join(str(v.name) for v in allowed)}"
    return level.name, ""


def _rank(foreign: Foreign, group: Group, space: SearchSpace, rules: _Rules) -> int:
    allowed = group.ranks or space.ranks
    own = max((foreign.ranks[x.name] for x in group.linears if x.name in foreign.ranks), default=None)
    wanted = rules.rank if rules.rank is not None else own
    if group.is_embedding or wanted is None:
        return min(allowed)
    if wanted in allowed:
        return wanted
    if rules.rounding == "refuse" or rules.rank is not None:
        raise ValueError(
            f"group {group.name!r} has ranks {', '.join(map(str, allowed))}, not {wanted}: choose one of them"
        )
    return rules.nearest(wanted, allowed)


def _rounding_notes(problem: str, texts: Sequence[str], rules: _Rules) -> list[str]:
    """A note on what was rounded, or the refusal to round it."""
    if texts and rules.rounding == "refuse":
        raise ValueError(
            f"{rules.source}: {len(texts)} {problem}, such as {texts[0]}: round them (nearest, up or down), or search "
            "a space that has them"
        )
    return [f"{len(texts)} {problem}: rounded {rules.rounding}, such as {texts[0]}"] if texts else []


# -- parsing ---------------------------------------------------------------------------------------
def _object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}, an object is needed")
    return data


def _bits_in(path: Path, name: str, value: Any, default: Any) -> float:
    bits = value.get("bits", default) if isinstance(value, dict) else value
    if not isinstance(bits, (int, float)) or isinstance(bits, bool):
        raise ValueError(f"{path}: {name!r} has no bits: {value!r}")
    return float(bits)


def _matches(path: Path, pattern: str, name: str) -> bool:
    try:
        return re.match(pattern, name) is not None
    except re.error as error:
        raise ValueError(f"{path}: {pattern!r} is no regular expression ({error})") from None
