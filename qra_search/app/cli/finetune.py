"""`qra finetune`, `export` and `generate`: a run's plan tuned and compared, written for another tool, and asked."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

from qra_search.app.baselines import Against
from qra_search.app.cli import common
from qra_search.app.cli.common import argument, option
from qra_search.app.compare import Comparison
from qra_search.app.config import read_pairs
from qra_search.app.report.live import make_listener
from qra_search.app.report.tables import render_comparison
from qra_search.app.run import Run
from qra_search.app.start import open_run
from qra_search.engines import serve_command
from qra_search.space.memory import format_bytes

AGAINST_HELP = (
    "Baselines to tune as well. best: the best uniform plan that fits. all: every uniform plan that fits, and the plan "
    "shuffled over linears of the same shape. shuffled: only the shuffled plan. ladder: uniform plans from 1 to 4 bits "
    "and plans between, to see how small the model may be. none: no baseline."
)
TUNING_HELP = (
    "Which tuning: its id (see `qra show`), or uniform, shuffled or 16-bit for a baseline; default: the one to "
    "deploy."
)
TOLERANCE_HELP = (
    "in points of the task's metric (default 0.5), or, without a metric, in percent of the loss (default 2)."
)
FORMATS_HELP = (
    "peft, merged, compressed-tensors, gguf, vllm or recipe; "
    "default: the format of the run's engine, or peft."
)


def finetune(
    run: common.RunArgument,
    plan: Annotated[
        str | None, option("--plan FILE|uniform2r4", "Plan to tune; default: the run's plan.json.")
    ] = None,
    memory: Annotated[
        str | None,
        option("--memory SIZE", "Tune the best plan within this budget; default: the run's largest."),
    ] = None,
    steps: Annotated[
        int | None, option("--steps N", "Optimizer steps; default: finetune.steps of the run.", min=1)
    ] = None,
    epochs: Annotated[
        float | None, option("--epochs N", "Passes over the train split, in place of steps.")
    ] = None,
    seeds: Annotated[
        int, option("--seeds N", "Seeds for each plan; several give intervals.", show_default=True, min=1)
    ] = 1,
    against: Annotated[
        Against, option("--against best|ladder|all|shuffled|none", AGAINST_HELP, show_default=True)
    ] = "best",
    with_16_bit: Annotated[
        bool, option("--with-16-bit", "Also tune LoRA on the unquantized 16-bit model.")
    ] = False,
    device: Annotated[
        str | None, option("--device D", "auto, cpu, cuda, cuda:1; default: the run's.")
    ] = None,
    rates: Annotated[
        str | None,
        option(
            "--rates 5e-4,1e-3,2e-3",
            "Learning rates to try; the rate with the lowest validation loss is used.",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        option(
            "--tolerance X",
            "How much worse than the best model the deployed one may be, " + TOLERANCE_HELP,
            min=0,
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        option("--set FIELD=VALUE", "A field of training or finetune: finetune.evaluate_every=50."),
    ] = None,
    as_json: common.JsonOption = False,
) -> None:
    """Tune a run's plan and its baselines, and compare them.

    Each tuning gets a folder of its own in RUN/tunings, with its adapter and its figures, and is never made twice:
    another plan, budget, seed or setting adds tunings. If it is interrupted, the same command continues from the last
    checkpoint.

    [bold]Example[/]

        qra finetune runs/a --against all --epochs 3 --set finetune.evaluate_every=50
    """
    chosen_from = None if rates is None else common.read_numbers("--rates", rates)
    own = read_pairs(sets) | ({} if device is None else {"model.device": device})
    with open_run(run) as opened:
        comparison = opened.finetune(
            plan,
            memory=memory,
            steps=steps,
            epochs=epochs,
            seeds=seeds,
            against=against,
            settings=own,
            with_16_bit=with_16_bit,
            rates=chosen_from,
            tolerance=tolerance,
            progress=make_listener(not as_json),
        )
    if as_json:
        common.print_json(comparison.to_dict())
    else:
        print_comparison(opened, comparison)


def print_comparison(run: Run, comparison: Comparison) -> None:
    """The finding, the table of the run's comparison, and what to do next."""
    console, snapshot = common.stdout(), run.snapshot
    comparison = snapshot.comparison() or comparison  # that of a longer tuning, perhaps
    console.print()
    console.print(render_comparison(comparison))
    console.print()
    common.print_next_steps(snapshot, comparison)


def export(
    run: common.RunArgument,
    tuning: Annotated[str | None, option("--tuning ID", TUNING_HELP)] = None,
    untuned: Annotated[
        bool, option("--untuned", "The run's plan without an adapter; needs no tuning.")
    ] = False,
    format: Annotated[str | None, option("--format -f F", FORMATS_HELP)] = None,
    out: Annotated[
        Path | None, option("--out -o PATH", "Where to write; default: exports/FORMAT in RUN.")
    ] = None,
    options: Annotated[
        list[str] | None, option("--option NAME=VALUE", "An option of the format, such as dtype=float32.")
    ] = None,
    as_json: common.JsonOption = False,
) -> None:
    """Write a tuned run for another tool, and check its logits.

    [bold]Example[/]

        qra export runs/a --format gguf

        qra export runs/a --untuned
    """
    given = read_pairs(options, "--option", "dtype=float32")
    with open_run(run) as opened:
        done = opened.export(format, out, tuning=tuning, untuned=untuned, options=given)
        engine = opened.config.engine
    if as_json:
        common.print_json({**vars(done), "path": str(done.path), "notes": list(done.notes)})
        return
    source = "the plan" if untuned else f"tuning {done.tuning}"
    print(f"{source}, {done.path}: {_describe_logit_difference(done)}")
    for note in done.notes:
        print(f"  - {note}")
    if engine is not None and format is None and not untuned:
        print(f"serve it with: {serve_command(engine, done.path)}")


def generate(
    run: common.RunArgument,
    prompt: Annotated[str, argument("PROMPT", "Text as the model gets it, without a chat template.")],
    engine: Annotated[
        str | None, option("--engine transformers|llama.cpp", "Default: the run's engine, or transformers.")
    ] = None,
    tuning: Annotated[str | None, option("--tuning ID", TUNING_HELP)] = None,
    tokens: Annotated[
        int, option("--tokens N", "Most tokens of the answer.", show_default=True, min=1)
    ] = 256,
    as_json: common.JsonOption = False,
) -> None:
    """Answer a prompt by a tuned run, with its speed and memory.

    The answer is decoded greedily and printed as it is written. The speed, and the memory held beyond the
    libraries, follow on standard error.

    [bold]Example[/]

        qra generate runs/a "User: my card has not arrived\\nIntent:"
    """
    on_text = None if as_json else partial(print, end="", flush=True)
    with open_run(run) as opened:
        done = opened.generate(prompt, engine=engine, tuning=tuning, tokens=tokens, on_text=on_text)
    if as_json:
        common.print_json(vars(done))
        return
    print()
    speed = f"{done.tokens} tokens, {done.tokens_per_second:.1f} per second"
    common.stderr().print(f"{speed}; {format_bytes(done.resident_bytes)} resident beyond the libraries")


def _describe_logit_difference(done: Any) -> str:
    if done.largest_logit_difference is None:
        return "written"
    if done.largest_logit_difference == 0:
        return "the same logits as the tuned model's, exactly"
    return (
        f"logits differ by up to {done.largest_logit_difference:.3g} (the largest logit is "
        f"{done.largest_logit:.3g}), and the likeliest token is the same at {done.same_next_token:.0%} "
        "of the positions"
    )
