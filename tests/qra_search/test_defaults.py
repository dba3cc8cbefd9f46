"""The defaults of Python, of the config and of the commands are the same."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from qra_search import Study
from qra_search.app.cli import common
from qra_search.app.cli.app import COMMANDS
from qra_search.app.config import RunConfig

CONFIG = RunConfig()
FIELDS = {name: field for name, (field, _) in common.SETTINGS.items() if field}
OF_THE_CONFIG = {
    "strategy": CONFIG.search.strategy,
    "evaluations": CONFIG.search.evaluations,
    "memory_budget": list(CONFIG.search.memory) or None,
    "seed": CONFIG.search.seed,
    "options": CONFIG.search.options or None,
}
RUNS = ("search", "plan")
"""Commands whose settings are those of a config."""


def defaults(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def test_ranks_begin_at_2_so_that_baselines_of_a_low_rank_fill_the_budget() -> None:
    assert RunConfig().space.ranks[0] == 2


def test_a_search_in_python_has_the_defaults_of_a_config() -> None:
    found = defaults(Study)
    assert {name: found[name] for name in OF_THE_CONFIG} == OF_THE_CONFIG


@pytest.mark.parametrize("name", RUNS)
def test_a_command_without_options_has_the_defaults_of_a_config(name: str) -> None:
    (command,) = (entry.load() for entry in COMMANDS if entry.name == name)
    flags = {p.name: p.default for p in command.params if p.name in FIELDS}
    assert {"model", "task", "seed", "backend"} <= flags.keys()
    assert {name for name, value in flags.items() if value is not None} == set()
    assert common.read_settings({"config": None, "sets": None, **flags}) == CONFIG


def test_finetune_has_the_defaults_of_a_full_tuning_in_python() -> None:
    from qra_search.app.cli.finetune import finetune
    from qra_search.app.run import Run

    command, python = defaults(finetune), defaults(Run.finetune)
    shared = python.keys() & command.keys()
    assert {"memory", "against", "seeds", "steps"} <= shared
    assert {n: command[n] for n in shared} == {n: python[n] for n in shared}


def test_a_flag_stands_for_a_field_that_there_is() -> None:
    data = CONFIG.model_dump()
    for path in FIELDS.values():
        section, _, field = path.partition(".")
        assert section in data and (not field or field.split(".")[0] in data[section]), path
