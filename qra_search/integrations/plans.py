"""Plans of other tools, read into a search space: to start a search from, or to be evaluated."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qra_search import plugins
from qra_search.space.groups import Group
from qra_search.space.levels import LevelName
from qra_search.space.serialization import PLAN_FORMAT, choices_in
from qra_search.space.space import Plan, SearchSpace

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


def import_plan(path: str | Path, format: str, space: SearchSpace, *, rank: int | None = None) -> Imported:
    """The plan of another tool's file, in a search space.

    A group whose bits are not allowed here gets the nearest that are (the wider of two); one whose linears differ gets
    the nearest to their mean by weights. The notes name these groups.

    Args:
        path: the file.
        format: name of an installed plan format, such as `autoround`.
        rank: of every group, as those tools have no adapters; default: the file's, or the smallest that the space has.

    Raises:
        ValueError: not such a file, another model's, or a rank that the space has not; the message says which.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    foreign: Foreign = plugins.load("importers", format)(path)
    followed = [group for group in space.groups if _follows(foreign, group)]
    bits_of, notes = _bits_of_linears(foreign, followed, path)
    bits, ranks, rounded = [], [], []
    for group in space.groups:
        if group not in followed:  # a file that says nothing of an embedding leaves it as it is
            bits.append((group.bits or space.bits)[-1])
            ranks.append(min(group.ranks or space.ranks))
            continue
        level, problem = _level(foreign, group, space, bits_of)
        rounded += [problem] if problem else []
        bits.append(level)
        ranks.append(_rank(foreign, group, space, rank))
    if rounded:
        notes.append(f"{len(rounded)} groups have bits that are not allowed here: rounded, such as {rounded[0]}")
    plan = Plan(tuple(bits), tuple(ranks))
    space.encode(plan)
    return Imported(plan, tuple(notes))


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
def _follows(foreign: Foreign, group: Group) -> bool:
    """Whether a group takes its choice from the file: patterns and defaults are for the linears of layers only."""
    return not group.is_embedding or all(linear.name in (foreign.names or ()) for linear in group.linears)


def _bits_of_linears(foreign: Foreign, groups: list[Group], path: Path) -> tuple[dict[str, float], list[str]]:
    """Bits by linear, and notes on what the file names too much."""
    found = {linear.name: foreign.bits_of(linear.name) for group in groups for linear in group.linears}
    named, notes = set(foreign.names or ()), []
    strange = sorted(named - set(found))
    if strange and len(strange) == len(named):
        raise ValueError(
            f"{path} is of another model: it names {strange[0]!r}, and this one has such as {min(found)!r}"
        )
    if strange:
        notes.append(f"{len(strange)} of the file's entries are not searched here, such as {strange[0]}: left out")
    if missing := [name for name, value in found.items() if value is None]:
        raise ValueError(f"{path} says nothing of {len(missing)} linears, such as {missing[0]}: add their bits to it")
    return {name: float(value) for name, value in found.items() if value is not None}, notes


def _level(foreign: Foreign, group: Group, space: SearchSpace, bits_of: Mapping[str, float]) -> tuple[LevelName, str]:
    """The level of a group, and what had to be rounded; empty if nothing had to be."""
    allowed = [level for level in space.levels if group.bits is None or level.name in group.bits]
    each = [bits_of[linear.name] for linear in group.linears]
    wanted = float(np.average(each, weights=[linear.weights for linear in group.linears]))
    named = {foreign.levels.get(linear.name) for linear in group.linears}
    level = next((level for level in allowed if named == {level.name}), None)
    if level is None:
        level = min(allowed, key=lambda level: (abs(level.width - wanted), -level.width))
    if {level.width} == set(each):
        return level.name, ""
    given = ", ".join(f"{bits:g}" for bits in sorted(set(each)))
    return level.name, f"{group.name}: {given} bits, now {level.name}"


def _rank(foreign: Foreign, group: Group, space: SearchSpace, given: int | None) -> int:
    allowed = group.ranks or space.ranks
    own = max((foreign.ranks[x.name] for x in group.linears if x.name in foreign.ranks), default=min(allowed))
    wanted = own if given is None else given
    if group.is_embedding:
        return min(allowed)
    if wanted not in allowed:
        raise ValueError(
            f"group {group.name!r} has ranks {', '.join(map(str, allowed))}, not {wanted}: choose one of them"
        )
    return wanted


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
