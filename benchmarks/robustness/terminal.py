"""Every screen of the terminal, on a tiny model, at 80 and 120 columns: what is too wide, what is cut, how it looks.

    python -m benchmarks.robustness.terminal --screens FOLDER

Needs tmux. The text of each screen is written to FOLDER/COLUMNS/NAME.txt, to be looked at.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import unicodedata
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, append_lines, find_commit, read_lines

ROOT = Path(__file__).parents[2]
ROWS = RESULTS / "cli" / "terminal.jsonl"
COLUMNS = (80, 120)
LINES = 50
SHORT = "--set finetune.steps=8 --set finetune.test_rows=32 --set finetune.sample_answers=3"
TINY = f"--model tiny --task arithmetic {SHORT}"
MODEL = "--model path/to/model --data rows.jsonl"

SCREENS: tuple[tuple[str, str, int], ...] = (
    ("help", "qra --help", 0),
    ("no-command", "qra", 0),
    ("help-search", "qra search --help", 0),
    ("help-finetune", "qra finetune --help", 0),
    ("help-export", "qra export --help", 0),
    ("doctor-model", "qra doctor --model tiny --task arithmetic --memory uniform4r8", 0),
    ("dry-run", f"qra search {TINY} --memory uniform3r8 --evaluations 24 --dry-run", 0),
    ("plan", f"qra plan {TINY} --memory uniform3r8 --memory uniform4r8 --out runs/a", 0),
    ("plan-engine", f"qra plan --engine llama.cpp {TINY} --memory 75% --out runs/gguf", 0),
    ("search", "qra search runs/a --evaluations 20", 0),
    ("finetune", "qra finetune runs/a --seeds 2", 0),
    ("finetune-budget", "qra finetune runs/a --memory uniform3r8", 0),
    ("show", "qra show runs/a", 0),
    ("search-no-plan", f"qra search {TINY} --memory 80% --evaluations 6 --strategy random --out runs/b", 0),
    ("report", "qra report runs/a", 0),
    ("show-two", "qra show runs/a runs/b", 0),
    ("export", "qra export runs/a --format peft", 0),
    ("strategies", "qra strategies", 0),
    ("backends", "qra backends", 0),
    ("tasks", "qra tasks", 0),
    ("bench", "qra bench --help", 0),
    ("wrong-option", "qra serch --model tiny", 2),
    ("wrong-size", f"qra plan {TINY} --memory 108", 2),
    ("run-exists", f"qra search {TINY} --memory 80% --out runs/b", 2),
    ("no-run", "qra show runs/none", 2),
)
"""Name, command and exit status of each screen, in an order in which each finds what it needs."""
ONE_LINE = re.compile(r"^qra: |^  .*: +qra |qra_eval\.load|^serve it with: ")
"""Lines that are not broken: errors, and what is to be copied."""
LIVE = ("plan", "search", "finetune")
"""Screens that change while they run: the last picture before the end is kept too."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--screens", type=Path, help="folder for the texts; default: they are not kept")
    parser.add_argument(
        "--only", nargs="*", help="names of screens whose rows are made anew, in place of all"
    )
    options = parser.parse_args()
    for columns in COLUMNS:
        with tempfile.TemporaryDirectory() as name, Terminal(Path(name), columns) as terminal:
            for screen, command, status in SCREENS:
                if options.only and screen not in options.only:
                    continue
                texts = terminal.run(command, live=screen in LIVE)
                for which, text in texts.items():
                    row = looked_at(text, columns) | {"status": terminal.status, "commit": find_commit()}
                    record({"screen": screen + which, "columns": columns, **row})
                    wrong = terminal.status != status or row["too_wide"]
                    print(f"{columns} {screen}{which}: {row}{'  <--' if wrong else ''}", flush=True)
                    if options.screens is not None:
                        target = options.screens / str(columns) / f"{screen}{which}.txt"
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.write_text(f"$ {command}\n{text}\n")


def record(row: dict[str, Any]) -> None:
    """Put a row in the place of an earlier one of the same screen."""
    known = read_lines(ROWS)
    place = (row["screen"], row["columns"])
    at = next((i for i, r in enumerate(known) if (r["screen"], r["columns"]) == place), len(known))
    known[at : at + 1] = [row]
    ROWS.unlink(missing_ok=True)
    append_lines(ROWS, *known)


def looked_at(text: str, columns: int) -> dict[str, Any]:
    """Lines, the widest, those wider than the terminal (which breaks them anywhere), and words cut by an ellipsis.

    An error is one line by rule, and a command is copied as one: neither is counted as too wide.
    """
    lines = text.splitlines()
    widths = [sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line) for line in lines]
    return {
        "lines": len(lines),
        "widest": max(widths, default=0),
        "too_wide": sum(w > columns and not ONE_LINE.search(t) for w, t in zip(widths, lines, strict=True)),
        "cut": text.count("…"),
    }


class Terminal:
    """A terminal of so many columns, in which commands are run one after another in one folder."""

    def __init__(self, folder: Path, columns: int):
        self.folder, self.columns, self.status = folder, columns, 0
        self.socket = f"qra-terminal-{columns}-{os.getpid()}"

    def __enter__(self) -> Terminal:
        (self.folder / "bin").mkdir()
        command = self.folder / "bin" / "qra"
        code = "import sys; sys.argv[0] = 'qra'; from qra_search.app.cli import main; main()"
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "{code}" "$@"\n')
        command.chmod(0o755)
        size = ("-x", str(self.columns), "-y", str(LINES))
        self.tmux("new-session", "-d", *size, "-c", str(self.folder), "bash", "--norc")
        self.tmux("set-option", "-g", "history-limit", "20000")
        return self

    def __exit__(self, *_: object) -> None:
        self.tmux("kill-server")

    def run(self, command: str, *, live: bool) -> dict[str, str]:
        """What a command leaves on the screen ("") and, of a live view, what it showed in its course ("-live")."""
        done = self.folder / "status"
        done.unlink(missing_ok=True)
        # A fresh window of the default size: nothing of the last command is on it.
        shell = f"{command}; echo $? > {shlex.quote(str(done))}; exec sleep 600"
        self.tmux("respawn-pane", "-k", "-c", str(self.folder), "bash", "--norc", "-c", shell)
        self.tmux("clear-history")
        shots: list[str] = []
        while not done.exists() or not done.read_text().strip():
            time.sleep(0.3)
            if live:
                shots.append(self.screen())
        time.sleep(0.2)
        self.status = int(done.read_text())
        texts = {"": self.screen()}
        if live and (seen := [shot for shot in shots if shot.strip() and shot != texts[""]]):
            texts["-live"] = max(seen[len(seen) // 2 :], key=len)  # the fullest of the later half
        return texts

    def screen(self) -> str:
        """All that was printed; a line that was too wide for the terminal stays one line."""
        return self.tmux("capture-pane", "-p", "-J", "-S", "-").rstrip()

    def tmux(self, *arguments: str) -> str:
        """What a command of a server of our own prints."""
        command = ["tmux", "-L", self.socket, *arguments]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, env=self.environment()
        ).stdout

    def environment(self) -> dict[str, str]:
        """Variables with which `qra` is the one of this checkout, with a cache of its own."""
        paths = os.pathsep.join([str(ROOT), str(ROOT / "backends")])
        path = os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])
        mine = {
            "PATH": path,
            "PYTHONPATH": paths,
            "QRA_CACHE": str(self.folder / "cache"),
            "TERM": "xterm-256color",
        }
        return {**os.environ, **mine, "LC_ALL": "C.UTF-8"}


if __name__ == "__main__":
    main()
