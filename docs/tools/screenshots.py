"""Takes the pictures of the docs: `python docs/tools/screenshots.py` runs a small search, and reports a recorded one.

Needs tmux (the live view wants a terminal) and chromium.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from qra_search.app.folder import RunFolder
from qra_search.log.journal import TrialLog

ROOT = Path(__file__).parents[2]
COLUMNS, LINES = 112, 30
EVALUATIONS = 24
SHOWN_AT = 0.7
"""Share of the search after which the terminal is taken."""
MOST_BYTES = 200_000
SEARCH = "qra search --model {model} --task arithmetic --memory uniform3r8 --evaluations {evaluations} --out runs/first"
RECORDED = ROOT / "benchmarks" / "results" / "study" / "trials-gsm8k-qra-module-0.jsonl"
"""Trials of a search on SmolLM2-135M and GSM8K; `benchmarks/study/search.py` of commit 1d624b8e made them."""
PAGE = """<!doctype html><meta charset="utf-8"><style>body{margin:0;background:#1b1f27}
pre{margin:0;padding:14px 16px;font:14px/1.35 "DejaVu Sans Mono",monospace;color:#e6e8ec}</style><pre>{code}</pre>"""


def main() -> None:
    """Write search.png and report.png into a folder; default: docs/images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--only-report", action="store_true", help="leave search.png as it is")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not options.only_report:
            search = SEARCH.format(model=options.model, evaluations=EVALUATIONS)
            terminal = searched(search, folder, RunFolder(folder / "runs" / "first"))
            (folder / "terminal.html").write_text(PAGE.replace("{code}", terminal))
            shoot(
                folder / "terminal.html",
                options.out / "search.png",
                960,
                (terminal.count("\n") + 1) * 19 + 28,
            )
        study = RunFolder(folder / "runs" / "study")
        study.path.mkdir(parents=True)
        shutil.copyfile(RECORDED, study.log_file)
        run(["qra", "report", "runs/study"], folder)
        shoot(RunFolder(folder / "runs" / "study").report_file, options.out / "report.png", 1160, 2200)
    for picture in sorted(options.out.glob("*.png")):
        if picture.stat().st_size > MOST_BYTES:
            sys.exit(f"{picture} has {picture.stat().st_size} bytes, at most {MOST_BYTES} are wanted")
        print(f"{picture}: {picture.stat().st_size} bytes")


def searched(search: str, folder: Path, run_folder: RunFolder) -> str:
    """Search in a terminal, and give the terminal in the middle of it as HTML; returns when the search has ended."""
    tmux("new-session", "-d", "-x", str(COLUMNS), "-y", str(LINES), "-c", str(folder), "bash", "--norc")
    try:
        tmux("send-keys", "clear; " + search, "Enter")
        screen = ""
        while not run_folder.report_file.exists():
            time.sleep(0.5)
            if not screen and run_folder.has_run and spent(run_folder) >= SHOWN_AT * EVALUATIONS:
                screen = tmux("capture-pane", "-e", "-p")
    finally:
        tmux("kill-server")
    shown = f"$ {search}\n" + screen.rstrip()  # the command was cleared away with what it was typed after
    console = Console(record=True, width=COLUMNS, file=open("/dev/null", "w"), force_terminal=True)  # noqa: SIM115
    console.print(Text.from_ansi(shown))
    return console.export_html(inline_styles=True, code_format="{code}", theme=MONOKAI)


def spent(run_folder: RunFolder) -> float:
    """What a running search has spent."""
    with TrialLog(run_folder.log_file) as log:
        return sum(trial.fidelity for trial in log if trial.evaluation is not None)


def shoot(page: Path, picture: Path, width: int, height: int) -> None:
    """A picture of a page in a window of so many pixels."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("chromium is not installed")
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                browser,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                f"--user-data-dir={profile}",
                f"--window-size={width},{height}",
                f"--screenshot={picture}",
                page.as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=180,
        )
    Image.open(picture).convert("RGB").quantize(256).save(picture, optimize=True)


def run(command: list[str], folder: Path) -> None:
    """Run a command of qra."""
    subprocess.run(command, cwd=folder, check=True, env=environment())


def tmux(*arguments: str) -> str:
    """What a command of tmux prints; its server is one of our own."""
    command = ["tmux", "-L", "qra-screenshots", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment()).stdout


def environment() -> dict[str, str]:
    """Variables with which `qra` is the one of this Python."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PS1": "$ ", "TERM": "xterm-256color"}


if __name__ == "__main__":
    main()
