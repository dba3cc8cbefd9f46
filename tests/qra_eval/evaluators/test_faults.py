"""Faults done to a real run: its model or data changed, its bank damaged, two workers quantizing at once."""

from __future__ import annotations

import json
import multiprocessing
from functools import partial

import pytest
from safetensors.torch import load_file, save_file
from tiny_families import tiny_config_model

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.models.tiny import byte_tokenizer
from qra_search import Study, search
from qra_search.app.config import make_config
from qra_search.app.evaluator import build_in_worker
from qra_search.executors import ProcessExecutor, RemoteEvaluator
from qra_search.log.journal import LogError

OPTIONS = {"strategy": "random", "evaluations": 17, "seed": 1}
FEWER = {**OPTIONS, "evaluations": 14}
"""The sensitivities of so short a tuning cost more than 10 evaluations: these leave 3 trials, and `OPTIONS` 6."""


@pytest.fixture
def files(tmp_path):
    """A model in a folder, and a task in a file."""
    tiny_config_model("llama").save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"{n} plus {n} is", "answer": str(2 * n)} for n in range(40)]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def config(files, *, compute="auto", **quantization):
    quantization |= {"backend": "reference", "embeddings": 16}
    return make_config(
        {
            "model": {"name": str(files / "model"), "device": "cpu", "compute": compute},
            "task": {"name": "jsonl", "data": str(files / "task.jsonl")},
            "quantization": {**quantization, "cache": str(files / "bank")},
            "space": {"bits": [2, 4], "ranks": [0, 4], "granularity": "layer"},
            "training": {"batch_size": 2, "max_length": 64},
            "evaluation": {"steps": 1, "validation_rows": 4},
        }
    )


def build(files, **changed) -> QuantizedLoRAEvaluator:
    return build_in_worker(config(files, **changed))


def facts(trials) -> list:
    assert len(trials) > 5, "too few trials to tell anything"
    return [(t.proposal, t.loss) for t in trials]


def refusal(evaluator, log, field: str, before: str) -> None:
    now = evaluator.describe()[field]
    assert now != before
    with pytest.raises(LogError, match=rf"evaluator\.{field} = '{before}', but now it is '{now}'"):
        Study(evaluator, **OPTIONS, log=log)


def test_a_model_that_changed_since_the_run_began_is_refused_with_both_hashes(files):
    evaluator = build(files)
    search(evaluator, **FEWER, log=files / "log")
    path = files / "model" / "model.safetensors"
    whole, tensors = path.read_bytes(), load_file(path)
    next(iter(tensors.values())).view(-1)[0] += 1.0
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    refusal(build(files), files / "log", "weights", evaluator.describe()["weights"])
    path.write_bytes(whole)
    again = search(build(files), **OPTIONS, log=files / "log")
    assert facts(again.trials) == facts(search(evaluator, **OPTIONS).trials)


def test_data_that_changed_since_the_run_began_are_refused_with_both_hashes(files):
    evaluator = build(files)
    search(evaluator, **FEWER, log=files / "log")
    task = files / "task.jsonl"
    task.write_text(task.read_text().replace("plus", "and"))
    refusal(build(files), files / "log", "rows", evaluator.describe()["rows"])


@pytest.mark.parametrize(
    ("field", "before", "changed"),
    [("calibration", "loss", "outputs"), ("calibration_tokens", 16384, 99), ("compute", "auto", "float32")],
)
def test_a_setting_that_losses_follow_from_cannot_change_while_a_study_is_resumed(
    files, field, before, changed
):
    Study(build(files), **FEWER, log=files / "log")
    with pytest.raises(LogError, match=rf"evaluator\.{field} = {before!r}, but now it is {changed!r}"):
        Study(build(files, **{field: changed}), **FEWER, log=files / "log")


def test_a_bank_file_that_was_cut_off_is_made_again_and_the_search_ends_as_an_unbroken_one(files, caplog):
    search(build(files), **FEWER, log=files / "log")
    for path in (files / "bank").glob("*.safetensors"):
        content = path.read_bytes()
        path.unlink()  # the old file may still be mapped into memory
        path.write_bytes(content[:-50])
    resumed = search(build(files), **OPTIONS, log=files / "log")
    again = {
        path for path in (files / "bank").glob("*.safetensors") if f"/{path.name} is damaged" in caplog.text
    }
    assert len(again) >= 2 * 7 and all(load_file(path) for path in again)
    assert facts(resumed.trials) == facts(search(build(files), **OPTIONS).trials)


def test_two_workers_that_begin_at_once_share_one_bank(files, monkeypatch):
    # Forked, as spawned ones spend most of the test importing; tests/qra_search/executors is of those.
    monkeypatch.setattr(
        multiprocessing, "get_context", {"spawn": multiprocessing.get_context("fork")}.__getitem__
    )
    with ProcessExecutor(partial(build_in_worker, config(files)), 2) as executor:
        remote = RemoteEvaluator(executor)
        groups = remote.space.groups
        result = search(remote, **OPTIONS, batch=2, executor=executor)
    kept = [p.name.partition("-")[2] for p in (files / "bank").iterdir() if p.suffix == ".safetensors"]
    asked = {
        (group.linears[0].name, bits)
        for t in result.trials
        for group, bits in zip(groups, t.plan.bits, strict=True)
    }
    assert len(kept) == 7 * len(asked) == len(set(kept)) and {
        f"{bits}bit-{name}.safetensors" for name, bits in asked
    } <= {*kept}
    here = search(build(files), **OPTIONS, batch=2)
    assert facts(result.trials) == facts(here.trials), "a loss depends on where it was measured"
