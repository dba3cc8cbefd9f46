"""The example configs are valid, and the notebooks have no outputs; `test_blocks` runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from docs_blocks import NOTEBOOKS, ROOT, blocks_of

from qra_search.app.config import load_config

EXAMPLES = ROOT / "examples"
CONFIGS = sorted(EXAMPLES.glob("*.yaml"))
MAX_OUTPUT = 20_000
"""Characters of a notebook's file: outputs are cleared before it is committed."""


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.name)
def test_a_config_is_valid_and_says_whether_it_was_run(file: Path) -> None:
    config = load_config(file)
    assert config.search.memory and config.evaluator == "quantized-lora"
    assert ("NOT RUN" in file.read_text()) == (config.model.device == "cuda")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.name)
def test_what_a_config_names_is_installed(file: Path) -> None:
    from qra_backends import make_backend

    from qra_search import plugins

    config = load_config(file)
    assert set(config.space.bits) <= set(make_backend(config.quantization.backend).bits)
    assert config.search.strategy in plugins.list_names("strategies")
    assert config.task.name.endswith(".jsonl") or config.task.name in plugins.list_names("tasks")


def test_the_page_on_models_shows_the_settings_of_an_example() -> None:
    shown = [b.code for b in blocks_of(ROOT / "docs" / "your-own-model.md") if b.language == "yaml"]
    assert [yaml.safe_load(code) for code in shown] == [
        yaml.safe_load((EXAMPLES / "qwen3-4b.yaml").read_text())
    ]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.name)
def test_a_notebook_is_committed_without_outputs(file: Path) -> None:
    cells = json.loads(file.read_text())["cells"]
    assert all(
        not cell["outputs"] and cell["execution_count"] is None
        for cell in cells
        if cell["cell_type"] == "code"
    )
    assert len(file.read_text()) < MAX_OUTPUT
