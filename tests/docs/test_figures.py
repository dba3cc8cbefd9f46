"""The figures can be drawn anew from the recorded results, and hold nothing from outside."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from docs_blocks import ROOT


def test_the_script_draws_every_figure_of_the_docs(tmp_path: Path) -> None:
    script = ROOT / "docs" / "tools" / "figures.py"
    subprocess.run([sys.executable, script, "--out", tmp_path], check=True, cwd=ROOT)
    drawn = {file.name for file in tmp_path.iterdir()}
    assert drawn == {file.name for file in (ROOT / "docs" / "figures").iterdir()}
    for file in tmp_path.iterdir():
        root = ET.parse(file).getroot()
        assert "prefers-color-scheme:dark" in file.read_text()
        assert not [e for e in root.iter() for v in e.attrib.values() if v.startswith(("http", "//"))]
