"""A run as an object: planned or opened, searched, fine-tuned, reported, exported, loaded. The commands call these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qra_search import plugins
from qra_search.app.baselines import Against
from qra_search.app.compare import Comparison
from qra_search.app.config import RunConfig, change_settings, make_settings, require_budget, require_task
from qra_search.app.evaluator import TunableEvaluator, Workers, build_evaluator, check_can_tune, start_workers
from qra_search.app.finetune import (
    StepListener,
    choose_rate_by_trials,
    choose_rate_by_tuning,
    make_tuning_request,
    select_comparison,
    tune_missing,
)
from qra_search.app.folder import RunFolder, Snapshot
from qra_search.app.report.formatting import format_plan
from qra_search.app.report.live import ProgressArgument, make_listener
from qra_search.app.report.page import write_page
from qra_search.app.search import plan_run, search_run
from qra_search.app.tuning_folder import TuningFolder
from qra_search.engines import ENGINES
from qra_search.errors import BadInput, RunFailed, convert_to_bad_input
from qra_search.evaluator import Evaluator
from qra_search.executors import Executor
from qra_search.schemas import Plan, TuningRecord
from qra_search.sections import DEFAULT_EVALUATIONS
from qra_search.space.memory import format_bytes
from qra_search.study.result import SearchResult
from qra_search.study.study import Callback, Listener

GENERATE_ENGINES = ("transformers", "llama.cpp")
"""Engines that `generate` has; the first is the default."""


class Run(AbstractContextManager["Run"]):
    """One run: a folder, its settings, and what is done with it; made by `qra_search.plan` or `open_run`.

    The model is loaded once and kept for the next step; `close`, or use in a `with` block, lets it go.

    Args:
        folder: of the run; it may be yet to be made.
        config: its settings.
        objects: task and metrics in memory, by these names.
    """

    def __init__(self, folder: str | Path, config: RunConfig, *, objects: Mapping[str, Any] | None = None):
        self.folder = RunFolder(folder)
        self.config = config
        self._objects = dict(objects or {})
        self._held: tuple[RunConfig, Evaluator] | None = None
        self._snapshot: Snapshot | None = None

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the model go; the next step loads it again."""
        if self._held is not None:
            self._held[1].close()
            self._held = None

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def result(self) -> SearchResult:
        """What the sensitivities and the search have found so far."""
        return self.folder.read().result

    @property
    def plan(self) -> Plan:
        return self.folder.read().require_plan()

    @property
    def records(self) -> list[TuningRecord]:
        """Every finished tuning, oldest first."""
        return self.folder.records()

    @property
    def comparison(self) -> Comparison | None:
        """The selected tuning beside its baselines on test data; None before `finetune`."""
        return self.folder.read().comparison()

    @property
    def snapshot(self) -> Snapshot:
        """What the folder's files say: as the last `finetune` of this object left them, or as they are read now."""
        return self._snapshot or self.folder.read()

    def select(self, tuning: str) -> Snapshot:
        """Make another tuning the one that the run shows, exports and loads, whatever was tuned beside it.

        Raises:
            BadInput: there is none, or it is of 16-bit LoRA, which is no plan of the run.
        """
        run = self.folder.check().read()
        id = run.find_tuning(tuning).id
        record = next(record for record in run.records if record.id == id)
        if not run.result.space.contains(record.plan):
            problem = "cannot be selected. It is LoRA on the 16-bit model, which is no plan of this run"
            raise BadInput(f"tuning {id} {problem}. To export it, use `qra export {self.path} --tuning {id}`")
        budget_bytes = max(run.result.memory_budgets, default=0)
        self._snapshot = replace(run, selection=self.folder.select(record, budget_bytes, is_named=True))
        write_page(self._snapshot)
        return self._snapshot

    def make_plan(self, *, progress: ProgressArgument = None) -> SearchResult:
        """Measure the sensitivities unless the run has them, and write the allocated plan; see `plan`."""
        require_budget(self.config)
        require_task(self.config)
        exists = self.folder.has_run
        is_asked = "evaluations" in self.config.search.model_fields_set
        if exists and self.folder.config_file.is_file() and not is_asked:  # as its search has them
            self.config = self._change_evaluations(self.folder.config().search.evaluations)
        with make_listener(progress) as listener, self.folder.begin(self.config, resume=exists):
            return plan_run(self.evaluator(listener), self.config, self.folder, listener)

    def search(
        self,
        evaluations: float | None = None,
        *,
        resume: bool = True,
        workers: int | Workers | None = None,
        batch: int | None = None,
        callbacks: Sequence[Callback] = (),
        progress: ProgressArgument = None,
    ) -> SearchResult:
        """Search from where the run stands, by short fine-tunings; as `qra search` does.

        Args:
            evaluations: full evaluations that may be spent in all; None: as the settings say.
            resume: False: refuse a folder in which a search has begun.
            workers: evaluate in so many worker processes; default: in this one.
            batch: so many proposals at a time, all awaited: the same trials with any number of workers.
            callbacks: hear of every event of the study.

        Raises:
            BadInput: what was given cannot be used; nothing was spent.
            StudyFailed: the search cannot go on, or nothing came of it.
        """
        require_task(self.config)
        config = self.config if evaluations is None else self._change_evaluations(evaluations)
        if workers is not None and self._objects:
            raise BadInput("workers cannot share an in-memory model or task: give their paths")
        with make_listener(progress) as listener, ExitStack() as stack:
            stack.enter_context(self.folder.begin(config, resume=resume and self.folder.has_run))
            self.config = config  # a number that was refused is no setting
            executor: Executor | None = None
            if workers is None:
                evaluator = self.evaluator(listener)
            else:
                workers = Workers(workers) if isinstance(workers, int) else workers
                evaluator, executor = stack.enter_context(start_workers(self.config, workers, listener))
            options: dict[str, Any] = {"executor": executor, "batch": batch, "callbacks": callbacks}
            return search_run(evaluator, self.config, self.folder, listener, **options)

    def finetune(
        self,
        plan: Plan | str | Path | None = None,
        *,
        memory: int | str | None = None,
        steps: int | None = None,
        epochs: float | None = None,
        seeds: int = 1,
        against: Against = "best",
        settings: Mapping[str, Any] | None = None,
        on_step: StepListener | None = None,
        with_16_bit: bool = False,
        rates: Sequence[float] | None = None,
        tolerance: float | None = None,
        progress: ProgressArgument = None,
    ) -> Comparison:
        """Tune the plan and its baselines in full, save the adapters, and compare them on test data.

        Only tunings without a record are made. The comparison becomes the one that is shown, unless one of more steps
        is: its `is_selected` tells. Its `deployed` is what `export` and `load` take.

        Args:
            plan: another than the run's own: an object, a `plan.json`, a run's folder, or a uniform one (`uniform3r8`).
            memory: tune the best plan within this budget instead.
            steps: of the optimizer; None: as the settings say.
            epochs: passes over the train split, in place of steps.
            seeds: tune every plan with so many, each on rows of its own.
            against: baselines to tune as well: the `best` uniform plan that fits, the plan `shuffled`, `all` uniform
                plans that fit and that one, `none`, or a `ladder` from 1 to 4 bits, of any size without `memory`.
            settings: values by dotted field that are other than the run's, such as `{"training.warmup": 0.2}`.
            on_step: called with the id of a tuning, a step, counted from 1, and its figures by name.
            with_16_bit: tune adapters of the largest rank on the model in 16 bits as well, to see what bits cost.
            rates: to tune the plan at in full, of which that of lowest validation loss is kept for all else.
            tolerance: what the deployed model may be worse by than the best one, in points of the task's metric, or in
                percent of the loss; None: that of the last comparison, at first 0.5 points or 2%.

        Raises:
            BadInput: what was given cannot be used.
            RunFailed: the plan cannot be tuned.
        """
        run = self.folder.check().read()
        known = self.folder.config()
        config = change_settings(known, steps=steps, epochs=epochs, rates=rates, settings=settings)
        tunings = make_tuning_request(
            run, plan, memory, seeds=seeds, against=against, with_16_bit=with_16_bit
        )
        with make_listener(progress) as listener:
            try:
                if rates:
                    config = choose_rate_by_tuning(
                        partial(self.evaluator, listener), config, listener, tunings, rates
                    )
                evaluator = self.evaluator(listener, config)
                if config.training.learning_rate == "auto":
                    tunable = check_can_tune(evaluator, config)
                    config = choose_rate_by_trials(tunable, config, listener, tunings)
                    evaluator = self.evaluator(listener, config)
                comparison = tune_missing(evaluator, config, listener, tunings, on_step=on_step)
                run = select_comparison(run, comparison, listener, tolerance)
            except RunFailed:
                if run.selected is not None:
                    listener.say(f"tuning {run.selected.id} stays selected")
                raise
            finally:
                self._snapshot = replace(run, records=tuple(self.folder.records()))
                if self._snapshot.records:
                    write_page(self._snapshot)
        is_selected = run.selected is not None and run.selected.id == comparison.chosen.records[0].id
        if is_selected and run.selection is not None:
            tolerance = run.selection.tolerance
        return replace(comparison, is_selected=is_selected, tolerance=tolerance)

    def report(self, out: str | Path | None = None) -> Path:
        """Write the HTML report, one file that needs no network, and return its path."""
        with convert_to_bad_input():
            return write_page(self.folder.read(), out)

    def export(
        self,
        format: str | None = None,
        out: str | Path | None = None,
        *,
        tuning: str | None = None,
        untuned: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        """Write a tuned plan for another tool; see docs/export.md for the formats.

        Args:
            format: default: that of the engine that the run was searched for, or `peft`.
            out: default: `exports/FORMAT` in the run's folder, with the id of a tuning that is named.
            tuning: as `load` takes it.
            untuned: write the run's plan without an adapter, as its sensitivities were measured.
            options: of the format.

        Returns:
            `path`, `notes`, and by how much logits differ.

        Raises:
            BadInput: nothing is tuned, the format cannot hold this plan, or something is in the way.
        """
        engine = self.config.engine
        name = format or ("peft" if engine is None else ENGINES[engine].format)
        plugins.find_entry_point("exporters", name)  # or says what there is
        if untuned and tuning is not None:
            raise BadInput("give --tuning or --untuned, not both")
        run = self.folder.check()
        found = run.tuning("untuned") if untuned else run.read().find_tuning(tuning)
        if not untuned and not (found.adapter / "adapter_model.safetensors").is_file():
            raise BadInput(f"{found.path} has no adapter: delete this folder and run `qra finetune` again")
        is_named = tuning is not None or untuned
        path = Path(out or self.path / "exports" / (f"{name}-{found.id}" if is_named else name))
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise BadInput(f"{path} already exists: give another path with --out, or remove it first")
        given = {option.replace("-", "_"): value for option, value in (options or {}).items()}
        with convert_to_bad_input():
            exporter = plugins.call_with_options(plugins.load("exporters", name), f"format {name!r}", given)
            if not untuned:
                return replace(exporter.export(found.path, path), tuning=found.id)
            plan = run.read().require_plan()
            with TemporaryDirectory(prefix=".untuned-", dir=self.path) as holder:
                check_can_tune(self.evaluator(), self.config).write_base(plan, Path(holder))
                self.close()
                return exporter.export(holder, path)

    def load(self, tuning: str | None = None, *, device: str = "auto") -> Any:
        """A tuned model, exactly as it was after tuning: (peft model, tokenizer).

        Args:
            tuning: an id (see `records`), `uniform`, `shuffled` or `16-bit`; default: what is to be deployed.

        Raises:
            BadInput: the evaluator loads no tuned models, or there is no such tuning.
        """
        found = self._find_tuning(tuning)
        with convert_to_bad_input():
            return self._find_evaluator_function("load")(found.path, device=device)

    def generate(
        self, prompt: str, *, engine: str | None = None, tuning: str | None = None, **options: Any
    ) -> Any:
        """Answer a prompt by a tuned plan, greedily.

        Args:
            prompt: as the model gets it, without a chat template.
            engine: `transformers` or `llama.cpp`, whose export is written if it is not there; default: the run's, or
                transformers.
            tuning: as `load` takes it.
            options: `tokens`, the most of an answer; `on_text`, called with each piece of the answer as it comes.

        Returns:
            `text`, `tokens`, `tokens_per_second`, and `resident_bytes` beyond those before the model was loaded.

        Raises:
            BadInput: there is no such tuning, or the engine cannot run it here.
        """
        engine = engine or (
            self.config.engine if self.config.engine in GENERATE_ENGINES else GENERATE_ENGINES[0]
        )
        if engine not in GENERATE_ENGINES:
            raise BadInput(
                f"engine of qra generate must be one of {', '.join(GENERATE_ENGINES)}, got {engine}"
            )
        found = self._find_tuning(tuning)
        if engine == "llama.cpp":
            exported = self.path / "exports" / f"gguf-{found.id}"
            if not exported.is_dir():
                self.export("gguf", exported, tuning=found.id)
            with convert_to_bad_input():
                return plugins.load("exporters", "gguf").generate(exported, prompt, **options)
        with convert_to_bad_input():
            generate = self._find_evaluator_function("generate")
            return generate(found.path, prompt, **options)

    def _find_tuning(self, name: str | None) -> TuningFolder:
        """The folder of a tuning; if none is named, a line on standard error says which one is used."""
        run = self.folder.read()
        found = run.find_tuning(name)
        if name is None:
            record = next(record for record in run.records if record.id == found.id)
            what = f"{format_plan(record.plan, run.result.space)}, {format_bytes(record.memory_bytes)}"
            make_listener(None).say(f"using tuning {found.id}: {what}")
        return found

    def _find_evaluator_function(self, name: str) -> Any:
        """A function of the run's evaluator that takes the folder of a tuning."""
        found = getattr(plugins.load("evaluators", self.config.evaluator), name, None)
        if found is None:
            raise BadInput(
                f"evaluator {self.config.evaluator!r} makes no tuned model to load, export or generate with"
            )
        return found

    def evaluator(self, listener: Listener | None = None, config: RunConfig | None = None) -> Evaluator:
        """The evaluator of the run, built when it is first asked for; it belongs to the run, which closes it."""
        config, listener = config or self.config, listener or Listener()
        # How long a search may be is nothing to an evaluator: a longer one goes on with the model that is loaded.
        search = config.search.model_copy(update={"evaluations": DEFAULT_EVALUATIONS})
        wanted = config.model_copy(update={"search": search})
        if self._held is not None and self._held[0] != wanted:
            held, evaluator = self._held
            training = held.training.model_copy(update={"learning_rate": wanted.training.learning_rate})
            is_alike = held.model_copy(update={"training": training}) == wanted
            if is_alike and isinstance(evaluator, TunableEvaluator) and not wanted.space.learning_rates:
                evaluator.set_learning_rate(wanted.training.learning_rate)  # without loading the model again
                self._held = wanted, evaluator
            else:
                self.close()
        if self._held is None:
            self._held = wanted, build_evaluator(config, listener.progress, objects=self._objects)
        evaluator = self._held[1]
        evaluator.progress = listener.progress
        return evaluator

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def _change_evaluations(self, count: float) -> RunConfig:
        return make_settings(self.config, {"search.evaluations": count})
