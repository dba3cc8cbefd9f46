"""What strategies are compared on: tasks by name, the budgets of a task, and strategies by name or file."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qra_search import plugins
from qra_search.config import make_config, read_yaml
from qra_search.errors import BadInput
from qra_search.space.space import Plan, SearchSpace
from qra_search.strategies import Strategy, make_strategy

FAMILIES = ("additive", "interaction", "compensation", "misleading", "heteroscedastic", "uneven", "saturating")
"""Families of the evaluator `landscape`, in the order of the tables."""
NOISE = re.compile(r"-noise(less|\d+(?:\.\d+)?)$")


class Oracle(Protocol):
    """An evaluator whose noise-free loss is known."""

    space: SearchSpace

    def true_loss(self, plan: Plan) -> float: ...
    def true_losses(self, b: np.ndarray, r: np.ndarray) -> np.ndarray: ...

    def reference_front(self, budgets: tuple[int, ...], cache: str | None = None) -> Any: ...


@dataclass(frozen=True)
class Task:
    """An evaluator by name with its options, to which the seed is added."""

    name: str
    evaluator: str = "landscape"
    options: Mapping[str, Any] = field(default_factory=dict)
    granularity: str = "module"

    def build(self, seed: int) -> Any:
        """The evaluator of one seed.

        Raises:
            UnknownName, ConfigError, ValueError: the evaluator or its options do not exist.
        """
        data = {"evaluator": self.evaluator, "options": {**self.options, "seed": seed}}
        fields = {"space.granularity": self.granularity, "search.seed": seed}
        return plugins.load("evaluators", self.evaluator)(make_config(data, fields, source=f"task {self.name}"))


def task_named(text: str) -> Task:
    """A task from `FAMILY-LAYERS-GRANULARITY-SENSITIVITIES`, such as `interaction-32-layer-measured`.

    With `-noiseless` behind it, every evaluation shows the true loss; with `-noise0.1` two seeds of a
    plan differ by so many nats (deviation) instead of as measured.

    Raises:
        ValueError: the text is none.
    """
    parts = NOISE.sub("", text).split("-")
    if len(parts) != 4 or not parts[1].isdigit():
        raise ValueError(
            f"{text!r} is no task: write FAMILY-LAYERS-GRANULARITY-SENSITIVITIES, such as "
            f"interaction-32-layer-measured (families: {', '.join(FAMILIES)})"
        )
    options: dict[str, Any] = {"family": parts[0], "layers": int(parts[1]), "sensitivities": parts[3]}
    if noise := NOISE.search(text):
        options["noise"] = 0.0 if noise[1] == "less" else float(noise[1])
    return Task(text, options=options, granularity=parts[2])


def task_budgets(space: SearchSpace) -> tuple[int, int, int]:
    """The three budgets of the protocol, in bytes: uniform 3-bit at rank 8, midway, uniform 4-bit at rank 8.

    Where the space lacks those choices: the bytes of uniform plans a third, a half and two thirds up its list.
    """
    low, high = space.uniform(3, 8), space.uniform(4, 8)
    if low is not None and high is not None:
        first, last = space.memory_bytes(low), space.memory_bytes(high)
        return first, (first + last) // 2, last
    sizes = sorted({space.memory_bytes(plan) for plan in space.uniform_plans()})
    sizes = sizes if len(sizes) > 2 else [space.memory.minimum, *sizes, space.memory.maximum]
    first, last = sizes[len(sizes) // 3], sizes[(2 * len(sizes)) // 3]
    return first, (first + last) // 2, last


def parse_strategy(text: str) -> Strategy:
    """A strategy from `NAME` or `FILE.py`, with options behind it: `NAME?OPTION=VALUE&OPTION=VALUE`.

    Raises:
        BadInput, UnknownName: there is no such strategy, or it does not take these options.
    """
    name, options = with_options(text)
    return make_strategy(strategy_in_file(Path(name)) if name.endswith(".py") else name, **options)


def strategy_label(text: str) -> str:
    """The name of a strategy in rows and tables: as it was given; of one in a file its own, unless that is another's,
    or the file's, and behind it a hash of the file: one that was changed is another strategy."""
    name, mark, options = text.partition("?")
    if name.endswith(".py"):
        file = Path(name)
        own = vars(strategy_in_file(file)).get("name")
        name = own if own and own not in plugins.names("strategies") else file.name
        name += f"@{hashlib.sha256(file.read_bytes()).hexdigest()[:6]}"
    return name + mark + options


def strategy_in_file(path: Path) -> type[Strategy]:
    """The one class of a Python file that is a strategy.

    Raises:
        BadInput: the file cannot be loaded, or holds no such class, or several.
    """
    module = plugins.load_file(path)
    found = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Strategy) and kind.__module__ == module.__name__
        and not inspect.isabstract(kind)
    ]  # fmt: skip
    if len(found) != 1:
        names = f"{len(found)} ({', '.join(kind.__name__ for kind in found)})" if found else "no"
        raise BadInput(f"strategy file {path} defines {names} classes that derive from qra_search.Strategy: define one")
    return found[0]


def with_options(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of `NAME?OPTION=VALUE&OPTION=VALUE`; values are read as YAML.

    Raises:
        ValueError: it has another form.
    """
    name, _, query = text.partition("?")
    options: dict[str, Any] = {}
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"option {pair!r} is not OPTION=VALUE, in {text!r}")
        options[key] = read_yaml(value)
    return name, options
