"""The command line as such: help with examples, lists, the schema, and what it does not import."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cli_runner import Qra

from qra_search import plugins
from qra_search.app.cli import main
from qra_search.app.cli.app import COMMANDS, Command
from qra_search.app.config import RunConfig, make_config
from qra_search.errors import BadInput

HEAVY = ("numpy", "pydantic", "torch", "matplotlib", "pymoo", "transformers", "botorch", "scipy", "rich")

COMMAND_NAMES = [entry.name for entry in COMMANDS]


def test_the_commands_import_nothing_heavy() -> None:
    code = f"import sys, qra_search.app.cli.app; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


REFUSED = (
    "search --strategy none",
    "finetune none",
    "export none --format peft",
    "plan --model tiny --memory 75%",
    "search misspelt.yaml",
)


def test_what_is_refused_at_once_loads_no_model_library(tmp_path: Path) -> None:
    (tmp_path / "misspelt.yaml").write_text("model: {name: tiny}\ntask: {name: arithmatic}\n")
    code = (
        "import sys\n"
        "from qra_search.app.cli.app import run_safely\n"
        f"print([run_safely(command.split()) for command in {REFUSED!r}])\n"
        "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines() == [str([2] * len(REFUSED)), "[]"], done.stderr
    assert "did you mean arithmetic?" in done.stderr


def test_the_evaluator_of_models_imports_them_only_once_settings_and_task_are_looked_at() -> None:
    code = (
        "import sys, qra_eval.evaluators.quantized_lora\n"
        "print([m for m in ('transformers', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_a_command_is_listed_with_the_first_line_of_its_documentation(entry: Command) -> None:
    first = (entry.load().help or "").partition("\n\n")[0]
    assert entry.help == " ".join(first.split())


@pytest.mark.parametrize("command", COMMAND_NAMES)
def test_every_command_has_help_with_an_example_of_itself_and_gives_json(qra: Qra, command: str) -> None:
    shown = qra(command, "--help")
    assert shown.status == 0 and "Example" in shown.out and f"qra {command}" in shown.out
    assert ("--json" in shown.out) is (command != "schema")  # which is JSON anyway


def test_without_arguments_help_is_shown_and_with_version_that_of_the_package(qra: Qra) -> None:
    shown = qra()
    assert shown.status == 0 and all(name in shown.out for name in COMMAND_NAMES)
    assert qra("--version").out.strip() == f"qra {importlib.metadata.version('qra-toolkit')}"


@pytest.mark.parametrize("kind", ["strategies", "tasks", "backends"])
def test_lists_name_every_plugin(qra: Qra, kind: plugins.Kind) -> None:
    rows = qra(kind, "--json").json
    assert [row["name"] for row in rows] == plugins.list_names(kind)
    assert all(row["summary"] for row in rows)
    table = qra(kind)
    assert table.status == 0
    assert all(name in table.out for name in plugins.list_names(kind))


def test_lists_show_options_exact_bits_devices_and_why_a_plugin_cannot_be_used(
    qra: Qra, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qra_backends.reference.backend import ReferenceBackend

    load = plugins.load

    def load_all_but_random(kind: plugins.Kind, name: str) -> object:
        if name == "random":
            raise ImportError("no module named 'absent'")
        return load(kind, name)

    monkeypatch.setattr(plugins, "load", load_all_but_random)
    monkeypatch.setattr(ReferenceBackend, "unavailable_reason", lambda self, levels=None: "the sun is down")
    strategies, backends = (
        {row["name"]: row for row in qra(kind, "--json").json} for kind in ("strategies", "backends")
    )
    assert strategies["nsga2"]["options"]["population"] == 20
    assert strategies["random"]["summary"] == "not available: no module named 'absent'"
    # Codes, and 16 bits each of scale and offset for every 64 weights.
    assert backends["reference"]["bits"] == {str(b): b + 32 / 64 for b in (2, 3, 4, 5, 6, 8)}
    assert backends["reference"]["devices"] == ["cpu", "cuda"] and backends["trellis"]["unavailable"] is None
    assert "not available: the sun is down" in " ".join(qra("backends").out.split())


def test_a_plugin_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("mine", "qra_search.files:no_such_thing", "qra.strategies")
    monkeypatch.setattr(plugins, "_find_entry_points", lambda kind: {"mine": point})
    with pytest.raises(
        BadInput, match=r"the strategy 'mine' \(qra_search.files:no_such_thing\) cannot be loaded"
    ):
        plugins.load("strategies", "mine")


def test_the_schema_has_every_field_and_the_example_is_a_config_of_defaults(qra: Qra) -> None:
    assert set(qra("schema").json["properties"]) == set(RunConfig.model_fields)
    assert make_config(yaml.safe_load(qra("schema", "--example").out)) == RunConfig()


def test_a_search_says_in_one_line_that_the_last_line_of_its_log_was_broken_off(
    qra: Qra, tmp_path: Path
) -> None:
    assert qra.search(tmp_path / "a").status == 0
    path = tmp_path / "a" / "trials.jsonl"
    with path.open("a") as file:
        file.write('{"trial":')
    assert qra("show", tmp_path / "a").status == 0, "a reader leaves it to the next writer"
    done = qra("search", tmp_path / "a", "-n", 14)
    told = [line for line in done.err.splitlines() if line.startswith("qra: ")]
    assert done.status == 0 and len(told) == 1
    assert told[0].startswith(f"qra: {path}: the last line is incomplete and is dropped")


def test_bench_runs_strategies_and_writes_tables(qra: Qra, tmp_path: Path) -> None:
    words = "bench --task interaction-4-layer-measured --strategy additive --strategy random --seeds 1 -n 6 --workers 1"
    done = qra(*words.split(), "--out", tmp_path / "b", "--json")
    assert done.status == 0 and done.json["rows"] == 2, done.err
    assert (tmp_path / "b" / "tables.md").is_file()


@pytest.mark.parametrize(
    ("given", "wanted"), [(None, "expandable_segments:True"), ("backend:native", "backend:native")]
)
def test_memory_of_a_card_may_grow_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: str | None, wanted: str
) -> None:
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    if given is not None:
        monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", given)
    with pytest.raises(SystemExit):
        main(["--help"])
    assert os.environ.pop("PYTORCH_CUDA_ALLOC_CONF") == wanted
