"""A loaded run is an ordinary model: torch, transformers, PEFT and TRL use it as they use any other."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from qra_backends.modules import DequantizedLinear
from qra_backends.trellis.linear import TrellisLinear
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Trainer, TrainingArguments

from qra_eval import load
from qra_eval.models.embeddings import TableEmbedding
from qra_eval.tuning.loading import BASE_DIGEST, find_tuning
from qra_search import plan
from qra_search.app.cli.app import run_safely
from qra_search.errors import BadInput

IDS = torch.arange(40, 64)[None]
STEPS = 5
BRIEF: dict[str, Any] = {"model": {"device": "cpu"}, "training": {"max_length": 64}}
BRIEF |= {"evaluation": {"steps": 2, "validation_rows": 8}}
BRIEF |= {"finetune": {"steps": 4, "test_rows": 4, "sample_answers": 0}}
ROUNDING = 0.02
"""Of logits in half precision, whose deviation is about 0.3."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tuning of the default plan: quantized linears, tied and quantized embeddings."""
    folder = tmp_path_factory.mktemp("ordinary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QRA_CACHE", str(folder / "cache"))
        tuned = plan("tiny", "arithmetic", memory="75%", out=folder / "run", config=BRIEF)
        tuned.finetune(against="none")
        tuned.close()
    return find_tuning(folder / "run")


@pytest.fixture
def model(run: Path) -> Any:
    return load(run, device="cpu")[0]


@pytest.fixture(scope="module")
def expected(run: Path) -> Tensor:
    return logits(load(run, device="cpu")[0])


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model.eval()(input_ids=IDS).logits


def base_state(model: Any) -> dict[str, Tensor]:
    """What training must leave alone."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if ".lora_" not in name}


def test_its_bytes_are_those_of_the_plan_and_nothing_in_it_is_a_placeholder(model: Any, run: Path) -> None:
    assert isinstance(model.get_input_embeddings(), TableEmbedding)
    assert model.get_memory_footprint() == json.loads((run / "plan.json").read_text())["memory_bytes"]
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


def from_state(model: Any, run: Path) -> Any:
    other, state = load(run, device="cpu")[0], copy.deepcopy(model.state_dict())
    for tensor in other.state_dict().values():
        tensor.zero_()
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize(
    "use",
    [
        lambda model, run: model.to("cpu"),
        lambda model, run: copy.deepcopy(model),
        from_state,
    ],
    ids=["device", "copy", "state_dict"],
)
def test_moved_copied_or_filled_it_computes_the_same(
    use: Callable[[Any, Path], Any], model: Any, run: Path, expected: Tensor
) -> None:
    assert torch.equal(logits(use(model, run)), expected)


def test_a_saved_adapter_is_loaded_on_the_base_of_the_run(
    model: Any, run: Path, expected: Tensor, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.save_pretrained(tmp_path)
        again, _ = load(run, adapter=tmp_path, device="cpu")
    assert torch.equal(logits(again), expected)
    with pytest.raises(ValueError, match="has no PEFT adapter"):
        load(run, adapter=tmp_path / "nothing", device="cpu")


def test_an_adapter_for_another_base_is_noticed(model: Any, run: Path, tmp_path: Path) -> None:
    model.peft_config["default"].auto_mapping = {BASE_DIGEST: "another"}
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="was trained on another base model than the one in"):
        load(run, adapter=tmp_path, device="cpu")


FIVE_STEPS: dict[str, Any] = {"max_steps": STEPS, "save_steps": STEPS, "learning_rate": 0.01}
FIVE_STEPS |= {"report_to": [], "use_cpu": True, "disable_tqdm": True}


def trained(trainer: Any, model: Any, run: Path, folder: Path) -> None:
    """Train, and check that adapters alone changed, and that what was saved is what was trained."""
    before, factors = base_state(model), copy.deepcopy(dict(model.named_parameters()))
    trainer.train()
    assert trainer.state.global_step == STEPS and (folder / f"checkpoint-{STEPS}").is_dir()
    after = base_state(model)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    for name, tensor in model.named_parameters():
        assert ".lora_A." in name or torch.equal(tensor, factors[name]) != (".lora_B." in name)
    trainer.save_model(folder / "trained")
    again, _ = load(run, adapter=folder / "trained", device="cpu")
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_goes_on_with_it(checkpointing: bool, model: Any, run: Path, tmp_path: Path) -> None:
    model.set_adapter("default")
    arguments = TrainingArguments(str(tmp_path), gradient_checkpointing=checkpointing, **FIVE_STEPS)
    rows: Any = [{"input_ids": IDS[0] + i, "labels": IDS[0] + i} for i in range(8)]
    trained(Trainer(model=model, args=arguments, train_dataset=rows), model, run, tmp_path)


@pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed: pip install 'qra-toolkit[trl]'")
def test_sft_trainer_goes_on_with_it(run: Path, tmp_path: Path) -> None:
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = load(run, device="cpu")
    model.set_adapter("default")
    arguments = SFTConfig(str(tmp_path), **FIVE_STEPS)
    rows = Dataset.from_list([{"prompt": f"{i} plus {i} is", "completion": f" {2 * i}."} for i in range(8)])
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    trained(trainer, model, run, tmp_path)


def count_dequantized(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets a number whenever a weight of the model is dequantized whole."""
    counts: list[int] = []
    for kind in {type(module) for module in model.modules() if isinstance(module, DequantizedLinear)}:
        original = kind.dequantize
        counting = lambda self, *a, original=original: counts.append(1) or original(self, *a)  # noqa: E731
        monkeypatch.setattr(kind, "dequantize", counting)
    return counts


LENGTH = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


def test_generate_multiplies_by_codes_and_its_memory_holds_no_weight_whole(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(run, device="cpu", weights="codes")[0]
    linears = [module for module in model.modules() if isinstance(module, TrellisLinear)]
    assert len(linears) > 7  # those of the layers, and the table
    counts = count_dequantized(model, monkeypatch)
    prompt, seen = IDS[:, :4], {"output_logits": True, "return_dict_in_generate": True}
    with Shapes() as seen_shapes:
        direct = model.generate(prompt, **LENGTH, **seen).logits[0]
    # An adapter of rank 32 has the shape of a weight of 32 outputs.
    factors = {tuple(parameter.shape) for name, parameter in model.named_parameters() if ".lora_" in name}
    weights = {(linear.out_features, linear.in_features) for linear in linears} - factors
    assert len(weights) > 3 and not counts and seen_shapes.found and not seen_shapes.found & weights
    assert not any("forward" in vars(module) for module in model.modules())
    monkeypatch.undo()
    decoded = load(run, device="cpu", weights="decoded")[0]
    assert (decoded.generate(prompt, **LENGTH, **seen).logits[0] - direct).abs().max() < ROUNDING
    with pytest.raises(
        ValueError, match="weights of a loaded model must be one of auto, codes, decoded, got 'both'"
    ):
        load(run, device="cpu", weights="both")


class Shapes(TorchDispatchMode):
    """The shapes of all tensors of floats that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        floats = [t for t in tree_leaves(given) if isinstance(t, Tensor) and t.is_floating_point()]
        self.found |= {tuple(tensor.shape) for tensor in floats}
        return given


def test_generate_dequantizes_each_weight_once_for_all_calls_and_leaves_no_forward_behind(
    run: Path, expected: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding asks for every weight at every token: anew each time it was five times as slow as 16 bits."""
    model = load(run, device="cpu", weights="decoded")[0]
    base = model.get_base_model()
    counts = count_dequantized(base, monkeypatch)
    kept = model.generate(IDS, **LENGTH)
    once = len(counts)
    assert 0 < once <= sum(isinstance(module, DequantizedLinear) for module in base.modules())
    counts.clear()
    assert (
        torch.equal(model.generate(IDS, **LENGTH), kept) and not counts
    )  # they are there since the first call
    twin = copy.deepcopy(model)
    assert torch.equal(twin.generate(IDS, **LENGTH), kept) and len(counts) == once
    assert torch.equal(logits(model), expected) and not any(
        "forward" in vars(module) for module in base.modules()
    )


def test_generate_follows_a_change_of_the_adapter(model: Any) -> None:
    """The adapter is merged into the kept weights: a step of an optimizer, or another scaling, merges it anew."""
    twin = copy.deepcopy(model)
    first = twin.generate(IDS, **LENGTH, output_logits=True, return_dict_in_generate=True).logits[0]
    assert (first - twin(IDS).logits[:, -1]).abs().max() < ROUNDING
    with twin.disable_adapter():
        without = twin.generate(IDS, **LENGTH, output_logits=True, return_dict_in_generate=True).logits[0]
    with torch.no_grad():
        for name, tensor in twin.named_parameters():
            if ".lora_B." in name:
                tensor.zero_()
    zeroed = twin.generate(IDS, **LENGTH, output_logits=True, return_dict_in_generate=True).logits[0]
    assert torch.equal(zeroed, without) and not torch.equal(zeroed, first)


def test_load_says_in_a_line_what_is_wrong(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = shutil.copytree(run, tmp_path / "damaged")
    (damaged / "plan.json").write_text('{"')
    with pytest.raises(BadInput, match="damaged/plan.json is not JSON"):
        load(damaged)
    for name, message in (
        ("adapter_model.safetensors", "adapter_model.safetensors is damaged"),
        ("adapter_config.json", "adapter_config.json is not JSON"),
    ):
        damaged = shutil.copytree(run.parents[1], tmp_path / name)  # of the whole run
        file = find_tuning(damaged) / "adapter" / name
        file.write_bytes(file.read_bytes()[:-9])
        with pytest.raises(BadInput, match=message):
            load(damaged)
        assert run_safely(["export", str(damaged), "--format", "peft"]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(BadInput, match="nothere has no tuned plan"):
        load("nothere")
