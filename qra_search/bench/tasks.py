"""What strategies are compared on: landscapes by name, their three budgets, and strategies by name or file."""

from __future__ import annotations

import hashlib
import inspect
import re
from pathlib import Path
from typing import Any

from qra_search import plugins
from qra_search.config import make_config, read_yaml
from qra_search.errors import BadInput
from qra_search.space.space import SearchSpace
from qra_search.strategies import Strategy, make_strategy

TASK = re.compile(r"([a-z]+)-(\d+)-([a-z]+)-([a-z]+)(?:-noise(less|\d+(?:\.\d+)?))?")
EXAMPLE = "interaction-32-layer-measured"


def build_task(name: str, seed: int) -> Any:
    """The landscape of a name, `FAMILY-LAYERS-GRANULARITY-SENSITIVITIES`, drawn by a seed; else ValueError.

    With `-noiseless` behind it, every evaluation shows the true loss; with `-noise0.1` two seeds of a plan differ by
    so many nats (deviation) instead of as measured.
    """
    parts = TASK.fullmatch(name)
    if parts is None:
        raise ValueError(f"{name!r} is no task: write FAMILY-LAYERS-GRANULARITY-SENSITIVITIES, such as {EXAMPLE}")
    family, layers, granularity, sensitivities, noise = parts.groups()
    options = {"family": family, "layers": int(layers), "sensitivities": sensitivities, "seed": seed}
    if noise is not None:
        options["noise"] = 0.0 if noise == "less" else float(noise)
    config = make_config(
        {"evaluator": "landscape", "options": options},
        {"space.granularity": granularity, "search.seed": seed},
        source=f"task {name}",
    )
    return plugins.load("evaluators", "landscape")(config)


def task_budgets(space: SearchSpace) -> tuple[int, int, int]:
    """The three budgets of the protocol, in bytes: uniform 3-bit at rank 8, midway, uniform 4-bit at rank 8.

    Where the space lacks those choices: the bytes of uniform plans a third, a half and two thirds up its list.
    """
    low, high = space.uniform(3, 8), space.uniform(4, 8)
    if low is not None and high is not None:
        first, last = space.memory_bytes(low), space.memory_bytes(high)
    else:
        sizes = sorted({space.memory_bytes(plan) for plan in space.uniform_plans()})
        sizes = sizes if len(sizes) > 2 else [space.memory.minimum, *sizes, space.memory.maximum]
        first, last = sizes[len(sizes) // 3], sizes[(2 * len(sizes)) // 3]
    return first, (first + last) // 2, last


def parse_strategy(text: str) -> Strategy:
    """A strategy from `NAME` or `FILE.py`, with options behind it, read as YAML: `NAME?OPTION=VALUE&OPTION=VALUE`."""
    name, _, query = text.partition("?")
    options: dict[str, Any] = {}
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise BadInput(f"option {pair!r} is not OPTION=VALUE, in {text!r}")
        options[key] = read_yaml(value)
    return make_strategy(load_strategy(Path(name)) if name.endswith(".py") else name, **options)


def strategy_label(text: str) -> str:
    """The name of a strategy in rows and tables: as it was given; of one in a file, the file's name with a hash of the
    file, since one that was changed is another strategy."""
    name, mark, options = text.partition("?")
    if name.endswith(".py"):
        name = f"{Path(name).name}@{hashlib.sha256(Path(name).read_bytes()).hexdigest()[:6]}"
    return name + mark + options


def load_strategy(path: Path) -> type[Strategy]:
    """The one class of a Python file that is a strategy; raises BadInput if there is none, or several."""
    module = plugins.load_file(path)
    own = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
    found = [kind for kind in own if issubclass(kind, Strategy) and not inspect.isabstract(kind)]
    if len(found) != 1:
        names = f"{len(found)} ({', '.join(kind.__name__ for kind in found)})" if found else "no"
        raise BadInput(f"strategy file {path} defines {names} classes that derive from qra_search.Strategy: define one")
    return found[0]
