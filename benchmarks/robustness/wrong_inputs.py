"""Runs the wrong inputs of `wrong_cases.py`, each as a process: one line that says the mend, status 2, nothing spent.

    python -m benchmarks.robustness.wrong_inputs [--only REGEX]

Every row has the line that was said, the seconds, and the processor's seconds, by which it is judged: other work on the
machine hardly lengthens them. It ends with status 1 if an input fails. About two minutes; Linux and macOS.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, append_lines, read_lines
from benchmarks.robustness.wrong_cases import CASES, OF_PLUGINS, world

ROOT = Path(__file__).parents[2]
ROWS = RESULTS / "cli" / "wrong_inputs.jsonl"
MOST = 2.0
"""Seconds of the processor that a refusal may take."""
BAD_INPUT = 2
HERE = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'backends'}"}
"""The code that is tried is that of this checkout."""
COMMAND = [sys.executable, "-c", "from qra_search.app.cli import main; main()"]
OFFLINE = {"HF_HUB_OFFLINE": "1"}
"""Each input is run as the machine is; those that name the hub are run offline a second time."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="only the inputs that match; the rows of the others stay")
    parser.add_argument("--folder", type=Path, help="keep what the inputs name there, or take what is there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as empty:
        folder = (options.folder or Path(empty)).resolve() / "world"
        os.environ["QRA_CACHE"] = str(folder.with_name("cache"))
        if not folder.is_dir():
            folder.mkdir(parents=True)
            world(folder, lambda command: made(command, folder))
        torch = spent([sys.executable, "-c", "import torch"])
        rows = []
        for command, wanted in (*CASES, *OF_PLUGINS):
            if not re.search(options.only or "", command):
                continue
            most = MOST + torch if (command, wanted) in OF_PLUGINS else MOST
            for more in ({}, OFFLINE) if "nobody/" in command else ({},):
                rows.append(tried(command, wanted, folder, more, most))
                faults = "; ".join(rows[-1]["faults"])
                print(
                    f"{rows[-1]['cpu_seconds']:.2f} s  qra {command}\n        {rows[-1]['said']}", flush=True
                )
                print(f"        FAILED {faults}" if faults else "        ok", flush=True)
    failed = sum(bool(row["faults"]) for row in rows)
    slowest = max(row["cpu_seconds"] for row in rows)
    print(f"{len(rows)} wrong inputs, {failed} failed; the slowest took {slowest:.2f} s of the processor")
    record(rows)
    sys.exit(1 if failed else 0)


def record(rows: list[dict[str, Any]]) -> None:
    """Write the rows in the order of the inputs, in place of those of the same inputs that are there."""
    found = {(row["command"], "environment" in row): row for row in [*read_lines(ROWS), *rows]}
    order = [(f"qra {command}", offline) for command, _ in (*CASES, *OF_PLUGINS) for offline in (False, True)]
    ROWS.unlink(missing_ok=True)
    append_lines(ROWS, *(found[k] for k in order if k in found))


def spent(command: list[str]) -> float:
    """Seconds of the processor that a command takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def made(command: str, folder: Path) -> None:
    """Run a command that has to end well."""
    status, _, out, err = run(command, folder, {})
    if status:
        raise SystemExit(f"qra {command} ended with status {status}: {err or out}")


def tried(command: str, wanted: str, folder: Path, more: dict[str, str], most: float) -> dict[str, Any]:
    """The row of one wrong input, with what is wrong in how it was refused."""
    before = listing(folder)
    began = time.perf_counter()
    status, cpu, out, err = run(command, folder, more)
    seconds = time.perf_counter() - began
    lines = [
        line for line in (out + err).splitlines() if line.strip() and not line.endswith(" ...")
    ]  # a phase begins
    said = lines[-1] if lines else ""
    faults = {
        f"status {status}": status != BAD_INPUT,
        f"{len(lines)} lines: {lines[:4]}": len(lines) != 1,
        f"does not say {wanted!r}": wanted not in said,
        "a traceback": "Traceback" in out + err or "QRA_TRACEBACK" in out + err,
        f"{cpu:.2f} s of the processor": cpu >= most,
        f"left behind: {sorted(map(str, listing(folder) ^ before))[:4]}": listing(folder) != before,
    }
    row = {"command": f"qra {command}", "said": said.replace(f"{folder}/", ""), "status": status}
    row |= {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2)}
    row["faults"] = [fault for fault, is_so in faults.items() if is_so]
    row |= {"environment": more} if more else {}
    return row | ({"imports_torch": True} if most > MOST else {})


def run(command: str, folder: Path, more: dict[str, str]) -> tuple[int, float, str, str]:
    """Status, seconds of the processor, and what was said on stdout and on stderr."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        place = os.getcwd()
        os.chdir(folder)
        try:
            pid = os.posix_spawn(
                COMMAND[0],
                [*COMMAND, *shlex.split(command)],
                {**os.environ, **HERE, **more},
                file_actions=[(os.POSIX_SPAWN_DUP2, out.fileno(), 1), (os.POSIX_SPAWN_DUP2, err.fileno(), 2)],
            )
        finally:
            os.chdir(place)
        _, status, usage = os.wait4(pid, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, texts[0], texts[1]


def listing(folder: Path) -> set[tuple[str, int]]:
    """Every file and folder with its size."""
    return {(str(p.relative_to(folder)), p.stat().st_size if p.is_file() else -1) for p in folder.rglob("*")}


if __name__ == "__main__":
    main()
