"""The strategy in docs/add-a-strategy.md keeps the contract, word for word as printed there."""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path

import pytest

from qra_search.testing import StrategyContract

GUIDE = Path(__file__).parents[3] / "docs" / "add-a-strategy.md"
MODULE = "printed_climber"


class TestClimber(StrategyContract):
    @pytest.fixture
    def strategy(self, tmp_path_factory, monkeypatch):
        folder = tmp_path_factory.mktemp("package")
        printed = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S)
        (folder / f"{MODULE}.py").write_text(next(code for code in printed if "class Climber" in code))
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *sys.path]))
        monkeypatch.delitem(sys.modules, MODULE, raising=False)
        return importlib.import_module(MODULE).Climber()
