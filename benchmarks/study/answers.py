"""Right answers at equal bytes, on a model of its own: one table a model, a row a piece; resumable.

    python -m benchmarks.study.answers --model-file FILE --name gemma-270m --data DIR --minutes 30
    python -m benchmarks.study.answers --name gemma-270m --table

Each row is a line of `answers.jsonl`. All rows see the same rows to train on, in the same batches, for as many steps at
the same rates, and the same test rows. QLoRA is transformers, bitsandbytes and PEFT themselves (`qlora.py`); plans of
ours have shares of its bytes. What is called 16 bits is the model's file, which its makers rounded to 4 bits,
dequantized. Each row is measured in a process of its own, so that its peak of memory is its own; seconds are those of
the processor, of the whole process. `--llama-server PROGRAM` adds a plan of llama.cpp's types, whose answers llama.cpp
itself writes (built from the source in llama-cpp-python 0.3.36: `cmake -B build -G Ninja`, `ninja -C build
llama-server`).
"""

from __future__ import annotations

import json
import os
import re
import time
import zlib
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import PeakWatch, append, read
from benchmarks.study import protocol
from benchmarks.study.answers_plans import bytes_of_qlora, evaluator, number_in, plan_of, words
from benchmarks.study.answers_settings import GGUF, GGUF_BITS, GGUF_TABLES, RANK, RANKS, SETTINGS
from benchmarks.study.answers_table import (
    FILE,
    FOR_LLAMA_CPP,
    PLAN,
    QLORA,
    SEARCH,
    UNIFORM,
    UNTUNED,
    WIDE,
    table,
)
from benchmarks.study.choices import choice_losses
from benchmarks.study.generated import answered, computing_in, dequantized, reloaded, written_by
from benchmarks.study.llama_server import served
from benchmarks.study.qlora import qlora, tuned_qlora
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.models.loaded import cache_root
from qra_eval.sensitivities.cache import SENSITIVITIES_VERSION
from qra_eval.tasks.losses import row_losses
from qra_eval.tuning import saved
from qra_search.config import QuantizationConfig
from qra_search.files import write_json
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.space import Plan


def main() -> None:
    parser = protocol.options(__doc__, seeds=1)
    parser.add_argument("--model-file", help="the model's GGUF file, as `models.py get` makes it")
    parser.add_argument("--name", choices=SETTINGS, required=True)
    parser.add_argument("--llama-server", help="the program, for the row of llama.cpp")
    parser.add_argument("--dequantized-cache", default="auto", help="bytes for dequantized weights, kept if all fit")
    options = parser.parse_args()
    path = options.out / FILE
    if options.table:
        print(*table(read(path), options.name), sep="\n")
        return
    until = protocol.begin(parser, options)
    if options.model_file is None:
        parser.error("--model-file is needed")
    options.work = cache_root() / "study" / "answers"
    protocol.measure(path, jobs(options, until), until, only=options.only)


# -- what is measured --------------------------------------------------------------------------
def jobs(options: Namespace, until: float | None) -> Iterator[tuple[str, protocol.Job]]:
    """All rows, seed by seed: rivals first, as plans have shares of their bytes."""
    setting = SETTINGS[options.name]
    plans = [f"{PLAN}{share}%" for share in setting.shares]
    uniform = [f"{UNIFORM}{bits}-bit" for bits in (3, 4, 2)]
    last = [f"{plans[0]}{FOR_LLAMA_CPP}"] if options.llama_server else []
    if setting.evaluations:
        last.append(f"{SEARCH}{setting.shares[0]}%")
    for seed in range(options.seeds):
        for row in (UNTUNED, QLORA, WIDE, plans[0], uniform[0], *plans[1:], *uniform[1:], *last):
            yield row, (key_of(options, row, seed), partial(apart, options, row, seed, until))


def key_of(options: Namespace, row: str, seed: int) -> dict[str, Any]:
    """What a line says to be known by: all that its figures follow from, but for the machine."""
    setting = SETTINGS[options.name]
    key = {"model": options.name, "task": setting.task, "row": row, "seed": seed, "compute": setting.compute}
    if row == UNTUNED:
        return key
    training = setting.training
    key |= {"steps": setting.finetune["steps"], "rows_a_step": training["batch_size"]}
    key |= {"rate": training["learning_rate"]}
    if row.startswith(SEARCH):
        key |= {"evaluations": setting.evaluations, "evaluation": setting.evaluation}
    if row.startswith((PLAN, UNIFORM, SEARCH)):
        backend = GGUF["name"] if row.endswith(FOR_LLAMA_CPP) else QuantizationConfig().backend
        key |= {"backend": backend, "prior": SENSITIVITIES_VERSION}
    return key


def apart(options: Namespace, row: str, seed: int, until: float | None) -> dict[str, Any]:
    """A row's figures, measured in a process of their own.

    Raises:
        SystemExit: with status `LEFT`: the time was over amid its answers, of which those that are there are kept.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        line = pool.submit(figures, options, row, seed, until).result()
    if line is None:
        raise SystemExit(protocol.LEFT)
    return line


def figures(options: Namespace, row: str, seed: int, until: float | None) -> dict[str, Any] | None:
    """A row's figures; None if the time was over before all its answers were there."""
    torch.set_num_threads(options.threads)
    start, setting = time.monotonic(), SETTINGS[options.name]
    # What was tuned under other settings is not taken up.
    known_by = zlib.crc32(repr((key_of(options, row, seed), setting)).encode())
    folder = options.work / re.sub(r"[%,]", "", f"{options.name} {row} {seed} {known_by:08x}").replace(" ", "-")
    state, spent = folder / "tuned.json", folder / "spent.jsonl"
    wide = evaluator(options, (UNQUANTIZED_BITS,), (0, RANK))
    if not setting.generated:
        line = tuned_row(wide, options, row, seed, None)
    else:
        if not state.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_json(state, tuned_row(wide, options, row, seed, folder))
            wide = evaluator(options, (UNQUANTIZED_BITS,), (0, RANK))
        task, tokenizer = wide.task, wide.tuner.tokenizer
        if row.endswith(FOR_LLAMA_CPP):
            asking: Any = served(options.llama_server, folder, task, tokenizer, options.threads)
        else:
            model = computing_in(setting.compute, wide.tuner.model if row == UNTUNED else again(wide, row, folder))
            asking = nullcontext(written_by(model, task, tokenizer))
        with asking as ask:
            right = answered(task, ask, tokenizer, setting.finetune["test_rows"], folder, until)
        line = None if right is None else {**json.loads(state.read_text()), **right}
    seconds = {"processor_seconds": processor_seconds(), "seconds": time.monotonic() - start}
    if setting.generated:
        append(spent, seconds)
        seconds = {name: sum(d[name] for d in read(spent)) for name in seconds}
    if line is None:
        return None
    return {**line, **{name: round(value, 1) for name, value in seconds.items()}, "threads": options.threads}


def processor_seconds() -> float:
    """Of this process, and of those that it started and that have ended."""
    return sum(os.times()[:4])


def tuned_row(
    wide: QuantizedLoRAEvaluator, options: Namespace, row: str, seed: int, folder: Path | None
) -> dict[str, Any]:
    """All of a row but generated answers.

    Args:
        wide: of the model in 16 bits.
        folder: where what was tuned is kept, for its answers; None: choices are scored at once.
    """
    if row == QLORA:
        model, line = qlora(wide, seed, RANK, folder)
        return {**line, "memory_bytes": bytes_of_qlora(options), **measured(wide, model, options)}
    made, plan = wide, wide.space.uniform(UNQUANTIZED_BITS, 0 if row == UNTUNED else RANK)
    if row not in (UNTUNED, WIDE):
        setting = SETTINGS[options.name]
        widths = (number_in(row),) if row.startswith(UNIFORM) else setting.widths
        backend: Any = QuantizationConfig().backend
        tables = setting.tables
        if row.endswith(FOR_LLAMA_CPP):
            backend, widths, tables = GGUF, GGUF_BITS, GGUF_TABLES
        made = evaluator(options, widths, RANKS, backend=backend, tables=tables)
        plan = plan_of(made, row, options, folder)
    assert plan is not None  # widths and ranks are in the space
    line = {**words(made, plan), **tuned(made, plan, seed, train=row != UNTUNED)}
    line |= measured(made, made.tuner.model, options)
    if folder is not None and row != UNTUNED:
        saved.save(made.tuner, plan, folder)
    return line


def again(wide: QuantizedLoRAEvaluator, row: str, folder: Path) -> Any:
    """A row's tuned model, from where it was kept."""
    return dequantized(tuned_qlora(wide, folder)) if row == QLORA else reloaded(folder)[0]


def tuned(made: QuantizedLoRAEvaluator, plan: Plan, seed: int, *, train: bool = True) -> dict[str, Any]:
    """The plan in place, tuned.

    `prepared` is what the process had spent by then: the first plan quantizes, and measures the sensitivities. The peak
    is of the process's own memory from before the plan was put in place.
    """
    bench, steps = made.tuner, made.tuner.finetune.steps
    bench.switcher.prepare()
    prepared = processor_seconds()
    with PeakWatch(0.02) as watch:
        bench.apply(plan, seed)
        trained = bench.train(steps, seed, batches=bench.final_batches(steps, seed)) if train else None
    line = {"memory_bytes": made.space.memory_bytes(plan), "peak_bytes": watch.most, "prepared": round(prepared, 1)}
    return line if trained is None else {**line, "train_loss": round(trained.loss, 5)}


def measured(made: QuantizedLoRAEvaluator, model: Any, options: Namespace) -> dict[str, Any]:
    """Loss of the test rows, and of choices whether the likeliest is the right one.

    Args:
        model: the one in place, or another with the same tokenizer.
    """
    bench, setting = made.tuner, SETTINGS[options.name]
    line: dict[str, Any] = {}
    if setting.generated:
        losses, tokens = row_losses(
            model, bench.rows("test", setting.loss_rows), bench.settings.batch_size, bench.device
        )
    else:
        examples = made.task.split("test")[: bench.finetune.test_rows]
        of_choices, lengths = choice_losses(model, bench.tokenizer, examples, bench.settings.batch_size)
        wanted = [(i, example.label) for i, example in enumerate(examples)]
        losses, tokens = ([some[i][label] for i, label in wanted] for some in (of_choices, lengths))
        line["row_right"] = [int(loss == min(some)) for loss, some in zip(losses, of_choices, strict=True)]
    line |= {"row_losses": [round(x, 4) for x in losses], "row_tokens": tokens}
    return {**line, "test_loss": round(sum(losses) / sum(tokens), 5)}


if __name__ == "__main__":
    main()
