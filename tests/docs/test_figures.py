"""The figures can be drawn anew from the recorded results, and hold nothing from outside."""

from __future__ import annotations

import runpy
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from docs_blocks import ROOT


def test_the_script_draws_every_figure_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = ROOT / "docs" / "tools" / "figures.py"
    monkeypatch.setattr("sys.argv", [str(script), "--out", str(tmp_path)])
    runpy.run_path(str(script), run_name="__main__")
    drawn = {file.name for file in tmp_path.iterdir()}
    assert drawn == {file.name for file in (ROOT / "docs" / "figures").iterdir()}
    for file in tmp_path.iterdir():
        root = ET.parse(file).getroot()
        assert "prefers-color-scheme:dark" in file.read_text()
        assert not [e for e in root.iter() for v in e.attrib.values() if v.startswith(("http", "//"))]
