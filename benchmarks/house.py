"""Size and order of the house: lines, modules, and imports inside functions, now and at an earlier revision.

python benchmarks/house.py --before e0f7172 --out benchmarks/results/house.md
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import tarfile
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("qra_search", "qra_eval", "backends/qra_backends")
LONG = 300


@dataclass(frozen=True)
class Package:
    """What is counted of one package.

    Attributes:
        root: modules at its root.
        inside: imports inside functions, by the package that they import.
    """

    name: str
    files: int
    lines: int
    root: int
    long: dict[str, int]
    inside: Counter[str]


def measure(folder: Path, name: str) -> Package:
    """Count one package below a folder."""
    files = sorted((folder / name).rglob("*.py"))
    lengths = {str(f.relative_to(folder)): len(f.read_text().splitlines()) for f in files}
    return Package(
        name,
        len(files),
        sum(lengths.values()),
        len(list((folder / name).glob("*.py"))),
        {path: n for path, n in lengths.items() if n > LONG},
        Counter(module for f in files for module in inside_functions(f)),
    )


def inside_functions(path: Path) -> list[str]:
    """Top-level names of what a file imports inside functions, each import once."""
    found: dict[int, str] = {}
    for outer in ast.walk(ast.parse(path.read_text())):
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(outer):
                if isinstance(node, ast.Import):
                    found[node.lineno] = node.names[0].name.split(".")[0]
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found[node.lineno] = node.module.split(".")[0]
    return list(found.values())


def at_revision(revision: str) -> list[Package]:
    """The same of an earlier commit."""
    tar = subprocess.run(["git", "archive", revision, *PACKAGES], cwd=ROOT, check=True, capture_output=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            archive.extractall(folder, filter="data")
        return [measure(Path(folder), name) for name in PACKAGES]


def table(before: list[Package], now: list[Package], revision: str) -> str:
    """Both as Markdown."""
    rows = [
        f"| package | lines at {revision} | lines now | modules at its root | files over {LONG} lines |",
        "|---|---|---|---|---|",
    ]
    for old, new in zip(before, now, strict=True):
        counts = f"{old.root} to {new.root} | {len(old.long)} to {len(new.long)}"
        rows.append(f"| {new.name} | {old.lines:,} | {new.lines:,} | {counts} |")
    total_old, total_new = sum(p.lines for p in before), sum(p.lines for p in now)
    rows.append(f"| all | {total_old:,} | {total_new:,} ({total_new - total_old:+,}) | | |")
    inside = sum((p.inside for p in now), Counter())
    earlier = sum((p.inside for p in before), Counter())
    listed = ", ".join(f"{name} {count}" for name, count in inside.most_common())
    ours = sum(count for name, count in earlier.items() if name.startswith("qra_"))
    long = "\n".join(f"- {path}: {n}" for p in now for path, n in p.long.items()) or "- none"
    return "\n".join(
        [
            "# The house",
            "",
            *rows,
            "",
            f"Imports inside functions: {sum(earlier.values())} before ({ours} of the packages' own modules), "
            f"{sum(inside.values())} now: {listed}.",
            "",
            f"Files over {LONG} lines:",
            "",
            long,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="e0f7172", help="revision to compare with")
    parser.add_argument("--out", type=Path, help="file to write; default: print")
    options = parser.parse_args()
    text = table(at_revision(options.before), [measure(ROOT, name) for name in PACKAGES], options.before)
    print(text)
    if options.out is not None:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
