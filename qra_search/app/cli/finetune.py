"""`qra finetune`: the plan of a run tuned in full, and compared with its baselines on test data."""

from __future__ import annotations

from typing import Annotated, Any

from qra_search.app.cli import common
from qra_search.app.cli.common import option
from qra_search.app.cli.dry_run import print_dry_run
from qra_search.app.compare import Comparison
from qra_search.app.finetune import check_reloads, select_tunings
from qra_search.app.report.tables import render_comparison
from qra_search.app.report.terminal import print_next_steps, print_samples
from qra_search.app.run import Run, open_run
from qra_search.app.settings import change_settings
from qra_search.launched import is_follower
from qra_search.space.budgets import check_budget_text


def finetune(
    run: common.RunPath,
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
    against: common.Against = "best",
    with_16_bit: Annotated[
        bool, option("--with-16-bit", "Also tune LoRA on the unquantized 16-bit model.")
    ] = False,
    discard: Annotated[
        bool, option("--discard", "Delete the adapters of all plans and rates but the chosen ones.")
    ] = False,
    device: Annotated[
        str | None, option("--device D", "auto, cpu, cuda:1, cuda:0,cuda:1; default: the run's.")
    ] = None,
    rates: Annotated[
        str | None,
        option("--rates 5e-4,1e-3,2e-3", "Tune the plan at each, go on with the lowest validation loss."),
    ] = None,
    sets: Annotated[
        list[str] | None,
        option(
            "--set FIELD=VALUE", "Any setting of training or finetune, such as finetune.evaluate_every=50."
        ),
    ] = None,
    dry_run: Annotated[
        bool, option("--dry-run", "Print the settings, the cost and a training example; tune nothing.")
    ] = False,
    track: common.Track = None,
    as_json: common.Json = False,
) -> None:
    """Tune the plan of a run and its baselines in full, save the adapters, and compare them on test data.

    Each tuning gets a folder of its own in RUN/tunings, with its adapter and its figures, and is never made twice:
    another plan, budget, seed or setting adds tunings. If it is interrupted, the same command continues from the last
    checkpoint. On several GPUs: `torchrun --nproc-per-node 4 -m qra_search finetune RUN`.

    [bold]Example[/]

        qra finetune runs/a --against all --epochs 3 --set finetune.evaluate_every=50
    """
    budget = None if memory is None else check_budget_text(memory, needs_unit=True)
    chosen_from = None if rates is None else common.read_numbers("--rates", rates, "5e-4,1e-3")
    own = common.read_pairs(sets) | ({} if device is None else {"model.device": device})
    changes: dict[str, Any] = {"steps": steps, "epochs": epochs, "rates": chosen_from, "settings": own}
    asked: dict[str, Any] = {"memory": budget, "seeds": seeds, "against": against, "with_16_bit": with_16_bit}
    view = common.make_view(quiet=as_json or is_follower())
    with open_run(run) as opened:
        if dry_run:
            settings, tunings = (
                change_settings(opened.config, **changes),
                select_tunings(opened.folder.read(), plan, **asked),
            )
            if not is_follower():
                options: dict[str, Any] = {
                    "track": track or (),
                    "rates": chosen_from or (),
                    "as_json": as_json,
                }
                print_dry_run(settings, view, tunings=tunings, **options)
            return
        comparison = opened.finetune(
            plan, **asked, **changes, discard=discard, track=track or (), progress=view, check=False
        )
    if as_json:
        common.print_json(comparison.to_dict())
    else:
        print_comparison(opened, comparison)
    check_reloads(comparison, opened.folder)


def print_comparison(run: Run, comparison: Comparison) -> None:
    """The finding, the table of the run's comparison, a few answers, and what to do next."""
    console, snapshot = common.stdout(), run.snapshot
    comparison = snapshot.comparison() or comparison  # that of a longer tuning, perhaps
    console.print()
    console.print(render_comparison(comparison))
    print_samples(console, comparison.chosen.samples)
    console.print()
    print_next_steps(console, run.folder, snapshot.result, comparison)
