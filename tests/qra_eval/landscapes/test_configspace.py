"""A space in ConfigSpace has the same choices, and its configurations are plans."""

from __future__ import annotations

import sys

import pytest

from qra_eval.landscapes.configspace import make_configuration_space, make_plan
from qra_search.errors import BadInput
from qra_search.schemas import ExtraParameter, Group, Linear
from qra_search.space.memory import GroupwiseFormat, Level
from qra_search.space.space import SearchSpace

LEVELS = [Level(name, width, "", GroupwiseFormat(4)) for name, width in ((2, 2), ("half-2.5", 2.5), (4, 4))]
GROUPS = [
    Group("up", (Linear("up", 64, 64),)),
    Group("table", (Linear("table", 64, 64),), bits=(4,), ranks=(0,)),
]
SPACE = SearchSpace(
    groups=GROUPS,
    bits=LEVELS,
    ranks=(0, 8),
    extra={"learning_rate": ExtraParameter((0.001, 0.002, 0.004), 0.002)},
)


@pytest.fixture
def _installed() -> None:
    pytest.importorskip("ConfigSpace", reason="ConfigSpace is not installed")


def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ConfigSpace", None)
    with pytest.raises(BadInput, match="pip install ConfigSpace"):
        make_configuration_space(SPACE)


@pytest.mark.usefixtures("_installed")
def test_its_parameters_are_the_choices_in_order() -> None:
    made = make_configuration_space(SPACE)
    choices = {name: list(parameter.sequence) for name, parameter in made.items()}
    assert choices == {
        "bits:up": [2, "half-2.5", 4],
        "rank:up": [0, 8],
        "bits:table": [4],
        "rank:table": [0],
        "learning_rate": [0.001, 0.002, 0.004],
    }
    assert made.get_default_configuration()["learning_rate"] == 0.002


@pytest.mark.usefixtures("_installed")
def test_every_configuration_is_a_plan_of_the_space() -> None:
    plans = {
        make_plan(SPACE, dict(c)) for c in make_configuration_space(SPACE, seed=0).sample_configuration(100)
    }
    assert len(plans) == 3 * 2 * 3
    assert all(SPACE.contains(plan) and len(plan.extra) == 1 for plan in plans)
