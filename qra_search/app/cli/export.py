"""`qra export`: a tuned run written in the format of another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from qra_search import plugins
from qra_search.app.cli import common
from qra_search.app.cli.common import option
from qra_search.app.run import open_run
from qra_search.engines import serve_command


def export(
    run: common.RunPath,
    tuning: common.Tuning = None,
    format: Annotated[
        str | None,
        option(
            "--format -f F",
            "peft, merged, compressed-tensors, gguf, vllm or recipe; default: that of the run's engine, or peft.",
            autocompletion=common.complete(lambda: plugins.list_names("exporters")),
        ),
    ] = None,
    out: Annotated[
        Path | None, option("--out -o PATH", "Where to write; default: exports/FORMAT in RUN.")
    ] = None,
    options: Annotated[
        list[str] | None, option("--option NAME=VALUE", "An option of the format, such as dtype=float32.")
    ] = None,
    as_json: common.Json = False,
) -> None:
    """Write a tuned run for another tool, and say by how much its logits differ.

    [bold]Example[/]

        qra export runs/a --format gguf
    """
    given = common.read_pairs(options, "--option", example="dtype=float32")
    with open_run(run) as opened:
        done, engine = opened.export(format, out, tuning=tuning, options=given), opened.config.engine
    if as_json:
        common.print_json({**vars(done), "path": str(done.path), "notes": list(done.notes)})
        return
    print(f"{done.path}: {_describe_difference(done)}")
    for note in done.notes:
        print(f"  - {note}")
    if engine is not None and format is None:
        print(f"serve it with: {serve_command(engine, done.path)}")


def _describe_difference(done: Any) -> str:
    if done.largest_logit_difference is None:
        return "written"
    if done.largest_logit_difference == 0:
        return "the same logits as the tuned model's, exactly"
    return (
        f"logits differ by up to {done.largest_logit_difference:.3g} (the largest is {done.largest_logit:.3g}), "
        f"and the likeliest token is the same at {done.same_next_token:.0%} of the positions"
    )
