"""The report in headless Chromium: what axe-core finds at two widths in both themes, and how its pages look.

python benchmarks/cli/browser.py RUN [RUN ...] --screenshots FOLDER

Needs chromium and axe-core (`npm install axe-core`, or QRA_AXE names its script). Of several runs the comparison is
looked at as well.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "cli" / "axe.json"
WIDTHS = {380: 3000, 1600: 2600}
"""Widths of the pages, and heights of their screenshots, in pixels."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--screenshots", type=Path, help="folder for PNG files; default: none are made")
    options = parser.parse_args()
    from qra_search.report.html.page import write_page
    from qra_search.runs.folder import RunFolder

    browser = _tests()
    if browser.BROWSER is None or browser.AXE is None:
        raise SystemExit("chromium and axe-core are needed: see --help")
    runs = [RunFolder(path).check() for path in options.runs]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        pages = {run.name: [run] for run in runs} | ({"compared": runs} if len(runs) > 1 else {})
        for name, of in pages.items():
            page = write_page(of, Path(folder) / f"{name}.html")
            for width in WIDTHS:
                for dark in (False, True):
                    theme = "dark" if dark else "light"
                    seen = browser.axe(page, width, Path(folder) / "profile", dark=dark)
                    assert seen["dark"] is dark and seen["width"] == width
                    line = {"page": name, "width": width, "theme": theme, "axe": seen["axe"],
                            "rules_passed": seen["rules"], "violations": seen["found"]}  # fmt: skip
                    found.append(line)
                    print(f"{name} {width} {theme}: {len(seen['found'])} violations, {seen['rules']} rules passed")
                    if options.screenshots is not None:
                        options.screenshots.mkdir(parents=True, exist_ok=True)
                        target = options.screenshots / f"{name}-{width}-{theme}.png"
                        _shoot(browser.BROWSER, page, target, width, dark, Path(folder) / "profile")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def _shoot(browser: str, page: Path, target: Path, width: int, dark: bool, profile: Path) -> None:
    """A screenshot; a window has a least width, so a narrow page is shown in a frame and cut out."""
    frame = page.with_name("shot.html")
    frame.write_text(
        f'<!doctype html><style>body{{margin:0}}</style><iframe src="{page.name}" '
        f'style="width:{width}px;height:{WIDTHS[width]}px;border:0"></iframe>'
    )
    subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
         "--disable-background-networking", f"--user-data-dir={profile}", f"--window-size={width},{WIDTHS[width]}",
         *(["--blink-settings=preferredColorScheme=0"] if dark else []), "--virtual-time-budget=3000",
         f"--screenshot={target.resolve()}", frame.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip


def _tests() -> Any:
    """The tests' own way to look at a page."""
    sys.path.insert(0, str(ROOT / "tests"))
    spec = importlib.util.spec_from_file_location(
        "test_browser", ROOT / "tests" / "qra_search" / "report" / "test_browser.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
