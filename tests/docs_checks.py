"""What the mark `parse` means for each language."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import tomllib
from typing import Any

import typer
from docs_blocks import ROOT, Block, commands

OURS = ("qra_search", "qra_eval", "qra_backends")


def check_sh(block: Block) -> None:
    """Commands of qra parse; make's targets, scripts of this repository and extras of the package exist."""
    for command in commands(block.code):
        words = shlex.split(command, comments=True)
        if words[0] == "qra":
            parse_command(words[1:])
        elif words[0] == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            unknown = [w for w in words[1:] if "=" not in w and w not in targets]
            assert not unknown, f"no target {unknown} in the Makefile"
        elif words[0] == "python" and words[1] == "-m":
            importlib.import_module(words[2])
        elif words[0] == "python" and words[1].startswith(("benchmarks/", "docs/", "examples/")):
            for script in ROOT.glob(words[1]):
                compile(script.read_text(), str(script), "exec")
            assert list(ROOT.glob(words[1])), f"no script {words[1]}"
        for extra in re.findall(r"qra-toolkit\[([\w-]+)\]", command):
            declared = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
            assert re.search(rf"^{extra} = ", declared, re.MULTILINE), f"no extra {extra!r}"


def check_python(block: Block) -> None:
    """It compiles, and what it imports from qra is there."""
    tree = ast.parse(block.code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name) or importlib.import_module(f"{node.module}.{name.name}")
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] in OURS:
                    importlib.import_module(name.name)


def check_yaml(block: Block) -> None:
    """A valid config."""
    import yaml

    from qra_search.app.config import make_config

    make_config(yaml.safe_load(block.code))


def check_toml(block: Block) -> None:
    """TOML."""
    tomllib.loads(block.code)


def check_json(block: Block) -> None:
    """JSON."""
    json.loads(block.code)


def check_jsonl(block: Block) -> None:
    """Rows that the task `jsonl` reads."""
    from qra_eval.tasks.example import make_example

    for number, line in enumerate(block.code.splitlines(), start=block.line):
        make_example(json.loads(line), f"line {number}")


def parse_command(arguments: list[str]) -> None:
    """Parse a `qra` command as the program would, without running it.

    Raises:
        Exception: an unknown command or option, a value of the wrong kind, or one that no config takes.
    """
    from qra_search.app.cli.app import app

    command: Any = typer.main.get_command(app)
    context, name = None, "qra"
    while True:
        context = command.make_context(name, list(arguments), parent=context)
        if not hasattr(command, "resolve_command"):
            break
        rest = [*getattr(context, "_protected_args", ()), *context.args]
        assert rest, f"qra {name} needs a command"
        name, command, arguments = command.resolve_command(context, rest)
    _check_settings(context.params)


def _check_settings(params: dict[str, Any]) -> None:
    """The settings that a command's options make are ones that a config takes."""
    from qra_search.app.cli import common

    if "sets" not in params or "config" not in params:
        return
    given = {name: params.get(name) for name in common.SETTINGS}
    config = given["config"]
    if config is None or not (ROOT / config).is_file():  # a run's folder
        given["config"] = None
    else:
        given["config"] = ROOT / config
    common.read_settings(given)
