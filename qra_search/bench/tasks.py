"""What strategies are compared on: tasks by name, the budgets of a task, and presets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from qra_search import plugins
from qra_search.config import make_config, read_yaml
from qra_search.space.space import Plan, SearchSpace
from qra_search.strategies import Strategy, make_strategy
from qra_search.study.arguments import check_evaluator

FAMILIES = ("additive", "interaction", "compensation", "misleading", "heteroscedastic", "uneven", "saturating")
"""Families of the `landscape` evaluator in the order of the tables; any other that it knows works by name too."""
CALIBRATED, SEEDED = "calibrated", "seeded"
"""Families that stand apart: what is to be gained there is small beside the noise; in the second, most of the noise is
alike for like plans with the same seed."""

NOISE = re.compile(r"-noise(less|\d+(?:\.\d+)?)$")
UNITS = re.compile(r"-(damage|gain)(\d+(?:\.\d+)?)")
MISSCALED = tuple(f"measured-{part}{scale}" for part in ("damage", "gain") for scale in ("0.01", "100"))
"""Priors whose units are not nats: one part a hundred times too small or too large."""


@runtime_checkable
class Oracle(Protocol):
    """An evaluator whose noise-free loss is known; any other is judged by evaluations (`MeasuredTruth`)."""

    space: SearchSpace

    def true_loss(self, plan: Plan) -> float: ...
    def true_losses(self, b: np.ndarray, r: np.ndarray) -> np.ndarray: ...

    def reference_front(self, budgets: tuple[int, ...], cache: str | None = None) -> Any: ...


@dataclass(frozen=True)
class Task:
    """An evaluator by name with its options, to which the seed is added.

    Attributes:
        config: further fields of a run's config, dotted, such as `model.name`.
        seeded: the evaluator has an option `seed`, of the landscape; it always gets the seed as `search.seed`.
    """

    name: str
    evaluator: str = "landscape"
    options: Mapping[str, Any] = field(default_factory=dict)
    granularity: str = "module"
    config: Mapping[str, Any] = field(default_factory=dict)
    seeded: bool = True

    def build(self, seed: int) -> Any:
        """The evaluator of one seed.

        Raises:
            UnknownName, ConfigError, ValueError: the evaluator or its options do not exist.
        """
        options = {**self.options, **({"seed": seed} if self.seeded else {})}
        fields = {"space.granularity": self.granularity, "search.seed": seed, **self.config}
        config = make_config({"evaluator": self.evaluator, "options": options}, fields, source=f"task {self.name}")
        return check_evaluator(plugins.load("evaluators", self.evaluator)(config))


def task_named(text: str) -> Task:
    """A task from `FAMILY-LAYERS-GRANULARITY-PRIOR` (`interaction-32-layer-measured`), `recorded:LOG`, or any
    installed evaluator as `evaluator:NAME?OPTION=VALUE&FIELD=VALUE`, where a field of the config has a dot in its name.

    With `-noiseless` behind it, every evaluation shows the true loss: what is left then is not for noise. With
    `-noise0.1` two seeds of a plan differ by so many nats (deviation) instead of as measured. With `-damage0.01` or
    `-gain100` behind the prior, that part of it is so many times too large: its units are not nats.

    Raises:
        ValueError: the text is neither.
    """
    kind, _, rest = text.partition(":")
    if kind == "recorded" and rest:
        return Task(f"recorded-{Path(rest).stem}", "recorded", {"log": rest})
    if kind == "evaluator" and rest:
        name, given = with_options(rest)
        fields = {key: value for key, value in given.items() if "." in key}
        own = {key: value for key, value in given.items() if "." not in key}
        return Task(text, name, own, config=fields, seeded=False)
    parts = UNITS.sub("", NOISE.sub("", text)).split("-")
    if len(parts) != 4 or not parts[1].isdigit():
        raise ValueError(
            f"{text!r} is no task: write FAMILY-LAYERS-GRANULARITY-PRIOR, such as interaction-32-layer-measured, "
            f"recorded:LOG, or evaluator:NAME?OPTION=VALUE (families: {', '.join((*FAMILIES, CALIBRATED, SEEDED))})"
        )
    family, layers, granularity, sensitivities = parts
    options: dict[str, Any] = {"family": family, "layers": int(layers), "sensitivities": sensitivities}
    options |= {f"{part}_scale": float(scale) for part, scale in UNITS.findall(text)}
    if noise := NOISE.search(text):
        options["noise"] = 0.0 if noise[1] == "less" else float(noise[1])
    return Task(text, options=options, granularity=granularity)


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
    """A strategy from `NAME`, `NAME:ARGUMENT` or `NAME?OPTION=VALUE&OPTION=VALUE`; values are read as YAML.

    The whole text is the strategy's name in the tables: `qra?residual=false`.
    """
    name, options = with_options(text)
    return make_strategy(name, **options)


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


@dataclass(frozen=True)
class Preset:
    """A benchmark by name."""

    tasks: Sequence[str]
    strategies: Sequence[str]
    seeds: int
    evaluations: float


def _grid(layers: Sequence[int], granularity: str, *priors: str) -> list[str]:
    return [
        f"{family}-{n}-{granularity}-{sensitivities}" for sensitivities in priors for family in FAMILIES for n in layers
    ]


ABLATED = (
    "qra?spans=[0.0]", "qra?moves=0", "qra?all_budgets=false", "qra?sweeps=0", "qra?alike=false",
)  # fmt: skip
"""`qra` with one ingredient off: draws of tables, neighbours and swaps, all budgets at once, hyperparameters by
evidence, likeness of groups."""
PRESETS = {
    "quick": Preset(
        ["interaction-16-layer-measured", "misleading-16-layer-measured"], ["additive", "qra"], seeds=3, evaluations=25
    ),
    "main": Preset(
        _grid([32], "layer", "measured"),
        ["uniform", "random", "additive", "nsga2", "bayes", "qr_adaptor", "autoqra", "optuna:tpe", "optuna:nsgaii",
         "qra"],
        seeds=20,
        evaluations=100,
    ),
    "samplers": Preset(
        _grid([32], "layer", "measured"),
        ["additive", "optuna:gp", "optuna:nsgaii", "optuna:nsgaiii", "optuna:qmc", "optuna:random", "optuna:tpe",
         "qra"],
        seeds=20,
        evaluations=50,
    ),
    "outside": Preset(
        _grid([32], "layer", "measured"),
        ["random", "nsga2", "optuna:tpe", "nevergrad", "qra"],
        seeds=20,
        evaluations=50,
    ),
    "sizes": Preset(
        _grid([16, 64], "layer", "measured"),
        ["random", "additive", "nsga2", "optuna:tpe", "qra"],
        seeds=20,
        evaluations=100,
    ),
    "module": Preset(
        _grid([32], "module", "measured"),
        ["random", "additive", "nsga2", "qr_adaptor", "autoqra", "qra"],
        seeds=20,
        evaluations=100,
    ),
    "large": Preset(_grid([64], "module", "measured"), ["additive", "nsga2", "qra"], seeds=5, evaluations=100),
    "priors": Preset(
        _grid([32], "layer", "flat", "shuffled", "none"), ["additive", "nsga2", "qra"], seeds=20, evaluations=200
    ),
    "misscaled": Preset(
        _grid([32], "layer", "measured", *MISSCALED, "none"), ["additive", "qra"], seeds=5, evaluations=50
    ),
    "long": Preset(_grid([32], "layer", "measured"), ["random", "nsga2"], seeds=5, evaluations=2000),
    "ablation": Preset(_grid([32], "layer", "measured", "flat"), ["qra", *ABLATED], seeds=5, evaluations=100),
    "calibrated": Preset(
        [f"{CALIBRATED}-32-{granularity}-measured" for granularity in ("layer", "module")],
        ["random", "additive", "nsga2", "qr_adaptor", "qra"],
        seeds=20,
        evaluations=100,
    ),
    "seeded": Preset(
        [f"{SEEDED}-32-{granularity}-measured" for granularity in ("layer", "module")],
        ["additive", "nsga2", "qra", "qra?seeds=3", "qra?seeds=8"],
        seeds=20,
        evaluations=50,
    ),
    "noiseless": Preset(
        [task + "-noiseless" for task in _grid([32], "layer", "measured")], ["qra"], seeds=5, evaluations=100
    ),
}  # fmt: skip
"""`quick` is for a first look; `main`, `samplers` and `outside` compare everything at one size, the others vary one
thing each: size, granularity, prior, how long the general optimizers may search, what `qra` is made of, noise, and what
landscapes are calibrated to."""
