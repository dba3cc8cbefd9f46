"""Feeds readers many broken inputs and counts what they may not do: a strange exception, a hang, a stray file.

    python benchmarks/workers/fuzz.py --inputs 100000

Inputs are mutations of valid ones (bytes flipped, cut, repeated, swapped between files), by a generator with a seed.
In pieces: fewer inputs each, every piece with a `--seed` of its own. With `--atheris`, coverage guides them instead
(`pip install atheris`); the first fault ends it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sqlite3
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from urllib.parse import unquote

sys.path.insert(0, str(Path(__file__).parent))
from common import record  # noqa: E402

if "--atheris" in sys.argv:  # before what it is to see
    import atheris

    seen = atheris.instrument_imports(include=["qra_search", "qra_eval"])
else:
    seen = nullcontext()
with seen:
    from qra_search.log.convert import convert
    from qra_search.log.logtools import check

    from qra_eval.models.from_gguf import read_header
    from qra_eval.tasks import make_task
    from qra_search import Plan, TrialLog, search
    from qra_search.config import ConfigError, RunConfig, dump_config, load_config
    from qra_search.log.errors import LogMismatch
    from qra_search.log.recorded import recorded_state
    from qra_search.space.budgets import size_in
    from qra_search.space.serialization import plan_from_dict, plan_to_dict
    from qra_search.testing.scenarios import ToyEvaluator

HANG = 10.0
SPACE = ToyEvaluator().space


def read_config(path: Path) -> None:
    load_config(path)


def read_plan(path: Path) -> None:
    plan_from_dict(SPACE, json.loads(path.read_text("utf-8", "replace")))


def read_key(path: Path) -> None:
    Plan.from_key(path.read_text("latin-1")[:5000])


def read_log(path: Path) -> None:
    check(path).lines()
    with TrialLog(path) as log:
        recorded_state(log)


def read_sealed_log(path: Path) -> None:
    """A log whose lines all get a right checksum, so that their content is what is looked at."""
    bodies = [line.rpartition(b',"crc":')[0] or line[:-1] for line in path.read_bytes().split(b"\n")]
    path.write_bytes(b"".join(b'%s,"crc":"%08x"}\n' % (body, zlib.crc32(body)) for body in bodies if body))
    read_log(path)


def read_old_log(path: Path) -> None:
    out = path.with_name("converted")
    try:
        convert(path, out)
        read_log(out)
    finally:
        for file in path.parent.glob("converted*"):
            file.unlink()


def read_budget(path: Path) -> None:
    size_in(SPACE, path.read_text("latin-1")[:5000])


def read_weights(path: Path) -> None:
    read_header(path)


def read_task(path: Path) -> None:
    named = path.with_suffix(".jsonl")
    path.rename(named)
    try:
        task = make_task("jsonl", data=named)
        for split in ("calibration", "validation", "test"):
            task.split(split)
    finally:
        named.unlink()


def gguf_file(path: Path) -> bytes:
    """A small GGUF file with metadata of every kind and two tensors."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_float32("llama.rope.freq_base", 10_000.0)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "a", "b", "ab"])
    writer.add_array("tokenizer.ggml.token_type", [3, 1, 1, 1])
    weight = np.linspace(-1, 1, 4 * 64, dtype=np.float32).reshape(4, 64)
    writer.add_tensor("token_embd.weight", weight)
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("blk.0.attn_q.weight", gguf.quantize(weight, kind), raw_dtype=kind)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return path.read_bytes()


def task_rows() -> bytes:
    rows = [{"prompt": f"{n} + 1 =", "answer": str(n + 1)} for n in range(20)]
    rows += [{"instruction": f"say {n}", "input": "", "output": str(n)} for n in range(4)]
    for n in range(4):
        turns = [("system", "be short"), ("user", "hi"), ("assistant", f"yes {n}")]
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def old_log(log: TrialLog, folder: Path) -> bytes:
    """The same log as older versions had it, in SQLite."""
    header = {"space": log.meta("space"), "space_data": log.meta("space_data"), "seed": 0}
    with closing(sqlite3.connect(folder / "seed.sqlite")) as db:
        db.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT, checksum TEXT)")
        for key, value in {"schema_version": 2, **header}.items():
            db.execute("INSERT INTO meta VALUES (?, ?, '')", (key, json.dumps(value)))
        columns = "id INTEGER PRIMARY KEY, plan, fidelity, seed, origin, predicted, status, result, reason, proposed_at"
        db.execute(f"CREATE TABLE trials ({columns}, finished_at, proposal_sum, result_sum)")
        for t in log:
            row = (t.id, t.plan.key, t.fidelity, t.seed, t.proposal.origin, "[null, null]", t.status)
            end = (json.dumps(vars(t.evaluation)), "", t.proposed_at, t.finished_at, "", "")
            db.execute(f"INSERT INTO trials VALUES ({', '.join('?' * 13)})", row + end)
        db.commit()
    return (folder / "seed.sqlite").read_bytes()


def seeds(folder: Path) -> list[tuple[str, Callable[[Path], None], bytes, int]]:
    """Name, reader, a valid input, and its weight among the inputs."""
    log = folder / "seed-log"
    search(ToyEvaluator(), strategy="random", evaluations=8, log=log)
    with TrialLog(log) as opened:
        sqlite = old_log(opened, folder)
        plan = opened.trials[0].plan
    key = plan.key.encode()
    return [
        ("config", read_config, dump_config(RunConfig()).encode(), 3),
        ("plan", read_plan, json.dumps(plan_to_dict(SPACE, plan)).encode(), 3),
        ("key", read_key, key, 2),
        ("log", read_log, log.read_bytes(), 3),
        ("sealed log", read_sealed_log, log.read_bytes(), 3),
        ("SQLite log", read_old_log, sqlite, 2),
        ("budget", read_budget, b"108.5MiB", 1),
        ("gguf", read_weights, gguf_file(folder / "seed.gguf"), 3),
        ("task", read_task, task_rows(), 3),
    ]


def mutate(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, kind = rng.randrange(len(data) + 1), rng.randrange(6)
        size = min(rng.choice((1, 2, 8, 100, 5000)), len(data) - at)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + size] = rng.randbytes(size)
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at:at] = data[at : at + size] * rng.choice((1, 2, 50))
        elif kind == 4:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            data[at : at + size] = other[start : start + size]
        else:
            data[at:at] = rng.choice(NASTY)
    return bytes(data)


NASTY = [
    b"../../../etc/passwd", b"&a [*a]", b"!!python/object/apply:os.system ['true']", b"[" * 500, b"{a: " * 500, b"\x00",
    b"1e999", b"-1", b"NaN", b"9" * 5000, b"\xff\xfe", b"\\ud800", b"null", b'{"a":' * 500, b"<script>", b"\n",
]  # fmt: skip


def attempt(reader: Callable[[Path], None], path: Path, content: bytes) -> tuple[str, float]:
    """What went wrong, if anything, and the seconds of processor time."""
    path.write_bytes(content)
    begun, fault = time.process_time(), ""
    try:
        reader(path)
    except (ConfigError, LogMismatch, ValueError) as error:
        fault = "several lines" if "\n" in str(error) and not isinstance(error, json.JSONDecodeError) else ""
    except RecursionError:
        fault = "" if reader is read_plan else "RecursionError"  # json's own, which the command line reports
    except BaseException as error:
        fault = f"{type(error).__name__}: {error}"
    return fault, time.process_time() - begun


class Watch:
    """Files and folders outside `folder` that this process opens to write, makes, moves or removes."""

    CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "sqlite3.connect")

    def __init__(self, folder: Path):
        self.folder = f"{folder.resolve()}{os.sep}"
        self.stray: set[str] = set()
        sys.addaudithook(self.see)

    def see(self, event: str, arguments: tuple) -> None:
        if event == "open":
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            touched = arguments[:1] if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else ()
        else:
            touched = arguments if event in self.CHANGES else ()
        opened = [a for a in arguments[1:] if isinstance(a, int) and a > 2 and event in ("os.remove", "os.rmdir")]
        base = os.readlink(f"/proc/self/fd/{opened[0]}") if opened else ""  # what the path is relative to
        for path in touched:
            if event == "sqlite3.connect":
                path = unquote(str(path)).removeprefix("file:").partition("?")[0]
            if isinstance(path, (str, bytes, os.PathLike)) and path not in (":memory:", os.devnull):
                name = os.path.realpath(os.path.join(base, os.fsdecode(path)))
                if not f"{name}{os.sep}".startswith(self.folder):
                    self.stray.add(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of damaged lines
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "in").mkdir()
        kinds = seeds(folder)
        for _name, reader, content, _weight in kinds:
            (folder / "in" / "input").write_bytes(content)
            reader(folder / "in" / "input")  # a seed that is refused would fuzz the refusal alone
        watch = Watch(folder / "in")
        if options.atheris:
            return fuzz_with_atheris(kinds, folder / "in" / "input", options)
        rng, contents = random.Random(options.seed), [k[2] for k in kinds]
        counts, faults, slowest = {k[0]: 0 for k in kinds}, {}, 0.0
        for _ in range(options.inputs):
            kind, reader, content, _weight = rng.choices(kinds, [k[3] for k in kinds])[0]
            fault, seconds = attempt(reader, folder / "in" / "input", mutate(content, contents, rng))
            counts[kind] += 1
            slowest = max(slowest, seconds)
            if fault or seconds > HANG:
                faults.setdefault(f"{kind}: {fault[:120] or 'hang'}", 0)
                faults[f"{kind}: {fault[:120] or 'hang'}"] += 1
        stray = len(watch.stray)
        print(*sorted(watch.stray), sep="\n", end="", file=sys.stderr)
        record(
            "fuzz",
            seed=options.seed,
            inputs=counts,
            faults=faults,
            slowest_cpu_seconds=round(slowest, 3),
            stray_files=stray,
        )


def fuzz_with_atheris(kinds, path: Path, options) -> None:
    readers = [k[1] for k in kinds]
    corpus = path.parent.parent / "corpus"
    corpus.mkdir()
    for number, kind in enumerate(kinds):
        (corpus / kind[0]).write_bytes(bytes([number]) + kind[2])

    count, slowest, watch = 0, 0.0, Watch(path.parent)

    def one(data: bytes) -> None:
        nonlocal count, slowest
        if data and data[0] < len(readers):
            fault, seconds = attempt(readers[data[0]], path, data[1:])
            slowest = max(slowest, seconds)
            if fault or watch.stray:
                raise RuntimeError(fault or f"wrote {watch.stray}")
        count += 1
        if count == options.inputs:  # the fuzzer ends the process
            record("atheris", inputs=count, slowest_cpu_seconds=round(slowest, 3))

    arguments = [sys.argv[0], f"-runs={options.inputs}", f"-timeout={HANG:g}", "-max_len=60000", str(corpus)]
    atheris.Setup(arguments, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
