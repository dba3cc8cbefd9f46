"""Models load from folders and names, are frozen, and are refused in one line where they cannot be trusted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import save_tiny
from torch import nn

from qra_eval.models import load as models
from qra_eval.models.load import load_model
from qra_eval.models.loaded import choose_compute_dtype, compute_fingerprint
from qra_search import BadInput


@pytest.fixture
def folder(tmp_path):
    return save_tiny("llama", tmp_path / "m")


def refused(spec, **options) -> str:
    with pytest.raises(ValueError) as caught:
        load_model(str(spec), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_is_loaded_frozen_in_evaluation_mode_with_a_padding_token(folder):
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")  # beside the safetensors
    loaded = load_model(str(folder), dtype=torch.float32)
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.tokenizer.pad_token_id is not None
    assert loaded.spec == str(folder.resolve()) and loaded.name == str(folder)
    assert load_model(loaded.name, dtype=torch.float32).fingerprint == loaded.fingerprint


def set_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def pickle_weights(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def cut_weights(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def remove_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def bring_code(folder):
    (folder / "code.py").write_text("raise SystemExit('ran')")
    own = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    set_config(folder, model_type="homemade", auto_map=own)


CANNOT = "cannot be loaded \\(.*save it again, as safetensors"


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (pickle_weights, "no file named model.safetensors"),
        (cut_weights, CANNOT),
        (lambda folder: (folder / "config.json").write_text("{"), CANNOT),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: set_config(folder, hidden_size=65), "cannot be loaded"),
        (
            lambda folder: set_config(folder, num_hidden_layers=5),
            "tensors of a Llama.*, such as model.layers.",
        ),
        (remove_tensor, "lacks 1 tensors of a .*layers.1.mlp.up_proj"),
        (lambda folder: set_config(folder, quantization_config={"quant_method": "fp8"}), "already quantized"),
        (bring_code, "needs code from its repository"),
    ],
)
def test_a_damaged_or_unfit_folder_is_refused_in_one_line(folder, damage, why):
    damage(folder)
    with pytest.raises(ValueError, match=why):
        load_model(str(folder))
    assert str(folder) in refused(folder)


@pytest.mark.parametrize("spec", ["./none", "a/b/c", "none.gguf", "", "~/none"])
def test_a_path_that_does_not_exist_is_refused_without_asking_the_hub(spec, monkeypatch):
    monkeypatch.setattr(models, "_read_from_hub", lambda *_: pytest.fail("asked the hub"))
    assert "no file or folder" in refused(spec)


def test_a_name_that_neither_we_nor_the_hub_know_is_refused_with_ours(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no network\nat all")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    message = refused("smolm2")
    assert "not one of smollm2, tiny" in message and "no network" in message
    with pytest.raises(BadInput):
        load_model("no-such/model")


def test_the_fingerprint_follows_the_weights_and_nothing_else(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    one, copy = (load_model(str(f), dtype=torch.float32) for f in (folder, tmp_path / "copy"))
    assert one.fingerprint == copy.fingerprint
    assert load_model(str(folder), dtype=torch.bfloat16).fingerprint != one.fingerprint
    copy.model.model.layers[1].mlp.down_proj.weight.data[3, 5] += 1
    assert compute_fingerprint(copy.model) != one.fingerprint
    large = nn.Linear(256, 4096, bias=False, dtype=torch.bfloat16)
    known = compute_fingerprint(large)
    large.weight.data[131] *= 2  # between the slices that are hashed
    assert compute_fingerprint(large) != known


@pytest.fixture
def fresh_dtype():
    choose_compute_dtype.cache_clear()
    yield
    choose_compute_dtype.cache_clear()


def test_a_model_is_stored_in_bfloat16_whatever_the_machine_computes_in(monkeypatch, fresh_dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {}, raising=False)
    assert choose_compute_dtype("cpu") == torch.float32 and load_model("tiny").model.dtype == torch.bfloat16


@pytest.mark.parametrize("half, whole, expected", [(1.0, 2.0, torch.bfloat16), (2.0, 1.0, torch.float32)])
def test_a_cpu_computes_in_the_dtype_in_which_a_product_is_faster(
    monkeypatch, fresh_dtype, half, whole, expected
):
    seconds = {torch.bfloat16: half, torch.float32: whole}
    clock = [0.0]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    monkeypatch.setattr("qra_eval.models.loaded.time.perf_counter", lambda: clock[0])

    def product(x, w):
        clock[0] += seconds[x.dtype]
        return x

    monkeypatch.setattr(torch.nn.functional, "linear", product)
    assert choose_compute_dtype("cpu") == expected


@pytest.mark.parametrize(("has", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_without_bfloat16_computes_in_float32_and_says_so(
    monkeypatch, caplog, fresh_dtype, has, expected
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    assert choose_compute_dtype("cuda") == expected and ("emulates bfloat16" in caplog.text) != has


def test_the_head_is_given_the_last_positions_side_by_side(folder):
    model = load_model(str(folder), dtype=torch.float32).model
    ids = torch.randint(3, 50, (3, 5), generator=torch.Generator().manual_seed(0))
    whole, seen = model(input_ids=ids).logits[:, -1:], []
    model.get_output_embeddings().register_forward_pre_hook(
        lambda _, args: seen.append(args[0].is_contiguous())
    )
    last = model(input_ids=ids, logits_to_keep=1).logits
    assert seen == [True]
    torch.testing.assert_close(last, whole)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says what is resident")
def test_weights_that_were_hashed_are_not_resident(tmp_path: Path):
    """A run that is loaded hashes 16-bit weights of which it needs few: 10 MiB of files would take 270 MiB."""

    def count_mapped() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssFile:"))

    size = 64 << 20
    save_file({"weight": torch.zeros(size // 4)}, tmp_path / "model.safetensors")
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(load_file(tmp_path / "model.safetensors")["weight"])
    before = count_mapped()
    kept = compute_fingerprint(model)
    assert count_mapped() - before > size / 2
    assert compute_fingerprint(model, release=True) == kept
    assert count_mapped() - before < size / 8
