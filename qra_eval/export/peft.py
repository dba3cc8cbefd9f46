"""Formats that transformers loads: `peft` and `vllm`, the exact base with a PEFT directory; `merged`; and
`compressed-tensors`, packed weights with a config group for each bit-width."""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from qra_backends.libraries.compressed_tensors import CompressedIntegers
from qra_backends.served.layout import QUANT_METHOD, SEPARATOR
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from qra_eval.export import Exported, Exporter
from qra_eval.export.tuned import TunedRun, add_adapter
from qra_eval.models.embeddings import find_embeddings
from qra_eval.models.linears import find_fused_kind
from qra_eval.models.loaded import WITHOUT_KERNELS
from qra_eval.pretrained import NEEDED_IMPORT
from qra_eval.tuning.loading import read_levels
from qra_search.app.tuning_folder import ADAPTER_FOLDER, BASE_FILE
from qra_search.engines import advise_replan, find_engine_rank, serve_command
from qra_search.files import write_json
from qra_search.schemas import LevelName
from qra_search.space.serialization import PLAN_NAME

VLLM = "vllm"
INDEX_FILE, REST_FILE = "model.safetensors.index.json", "rest.safetensors"


class PEFTExporter(Exporter):
    """The run's own files, and what makes them a model that transformers loads: see `qra_eval.pretrained`."""

    name = "peft"
    one_rank = False

    def write(self, run: TunedRun, out: Path) -> Exported:
        write_adapter(run, out / ADAPTER_FOLDER, one_rank=self.one_rank)
        for name in (BASE_FILE, PLAN_NAME):
            shutil.copyfile(run.folder / name, out / name)
        write_model_files(run, out)
        notes = [
            f'after `import qra_eval.pretrained`, the base: `base = AutoModelForCausalLM.from_pretrained("{out}")`',
            f'the tuned model: `PeftModel.from_pretrained(base, "{out / ADAPTER_FOLDER}", '
            "autocast_adapter_dtype=False)`",
        ]
        if self.one_rank:
            serve = serve_command(VLLM, out)
            notes.append(f"serve it where this package is installed beside vLLM: {serve}")
        base = load_plain(out, run.dtype)
        logits = run.compute_logits(add_adapter(base, out / ADAPTER_FOLDER))
        return Exported(out, tuple(notes), **run.compare_logits(logits))


class VLLMExporter(PEFTExporter):
    """As `peft`, with the adapter at the one rank and scaling that vLLM knows.

    Fused matrices may have shards at any levels: `qra_backends.served.vllm_plugin` holds each apart.
    """

    name = "vllm"
    one_rank = True

    def list_issues(self, run: TunedRun) -> list[str]:
        reasons = list_rearranged_issues(run)
        if any(name.endswith(".query_key_value") for name in run.levels):
            reasons.append(
                "vLLM reorders the rows of query_key_value, but not of its codes: export as merged"
            )
        try:
            find_engine_rank(VLLM, max(len(A) for A, _ in run.factors.values()))
        except ValueError as error:
            reasons.append(f"{error}: {advise_replan(VLLM)}")
        return reasons


class MergedExporter(Exporter):
    """An unquantized model in `dtype`, with the rounding of the plan in its weights and the adapter merged.

    The tuned model adds the adapter's output after the base's; a weight that holds both is rounded once more. float32
    adds no rounding, and a model tuned in bfloat16 then differs by its own.
    """

    name = "merged"
    needs_adapter = False

    def __init__(self, dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"):
        self.dtype: torch.dtype = getattr(torch, dtype)

    def write(self, run: TunedRun, out: Path) -> Exported:
        model = run.build_skeleton().to(self.dtype)
        model.load_state_dict(run.build_merged_state(self.dtype), assign=True)
        model.tie_weights()
        model.config.dtype = self.dtype
        model.generation_config = run.base.generation_config
        model.save_pretrained(out)
        run.tokenizer.save_pretrained(out)
        name = str(self.dtype).removeprefix("torch.")
        note = (
            f'load it with AutoModelForCausalLM.from_pretrained("{out}", dtype="{name}"): it is not quantized'
        )
        return Exported(out, (note,), **run.compare_logits(run.compute_logits(load_plain(out, self.dtype))))


class CompressedTensorsExporter(Exporter):
    """A model folder whose searched linears are copies of the plan's own tensors, for vLLM and transformers.

    Nothing is rounded: what is stored in another way is refused. What vLLM runs as one matrix (q, k and v; gate and
    up) must have one bit-width. It knows one rank and one scaling, so the adapter is written at the largest.
    """

    name = "compressed-tensors"

    def list_issues(self, run: TunedRun) -> list[str]:
        reasons = []
        linears = run.quantized_linears.items()
        others = [name for name, module in linears if not isinstance(module, CompressedIntegers)]
        others += run.tables
        if others:
            reasons.append(
                f"{len(others)} weights are not stored as compressed-tensors, such as {others[0]}: "
                f"{advise_replan('vllm')}"
            )
        reasons += list_rearranged_issues(run)
        shards: dict[str, set[LevelName]] = {}
        for name, level in run.levels.items():
            parent, _, kind = name.rpartition(".")
            shards.setdefault(f"{parent}.{find_fused_kind(kind)}_proj", set()).add(level)
        uneven = [name for name, levels in shards.items() if len(levels) > 1]
        if uneven:
            reasons.append(
                f"{len(uneven)} fused matrices have shards of different bits, such as {uneven[0]}, which vLLM cannot "
                "load: plan anew by `qra plan --engine vllm`, which chooses for the shards together"
            )
        return reasons

    def write(self, run: TunedRun, out: Path) -> Exported:
        packed: dict[str, Any] = run.quantized_linears
        stored: dict[str, torch.Tensor] = {}
        for name, module in packed.items():
            stored |= {f"{name}.{key}": tensor for key, tensor in module.tensors().items()}
        rest = select_unsearched(run, tuple(f"{name}." for name in packed))
        save_file({**rest, **stored}, out / "model.safetensors", metadata={"format": "pt"})
        write_config(run, out, make_quantization_config(run, packed))
        write_adapter(run, out / ADAPTER_FOLDER, one_rank=True)
        notes = (
            f"{len(packed)} of {len(run.levels)} searched weights are copies of the plan's own",
            f"the adapter is in {out / ADAPTER_FOLDER}: load it on top with peft",
        )
        if importlib.util.find_spec("compressed_tensors") is None:
            return Exported(out, (*notes, "not compared: compressed-tensors is not installed"))
        # Not with `CompressedTensorsConfig(dequantize=True)`: transformers 5.24 then takes the first config group for
        # every layer, and reads those of other widths wrongly.
        model = load_plain(out, run.dtype)
        model(input_ids=torch.tensor([[0]]))  # decompresses: peft finds no weights before
        logits = run.compute_logits(add_adapter(model, out / ADAPTER_FOLDER))
        return Exported(out, notes, **run.compare_logits(logits))


def make_quantization_config(run: TunedRun, packed: dict[str, CompressedIntegers]) -> dict[str, Any]:
    groups: dict[tuple[int, int], list[str]] = {}
    for name, module in packed.items():
        size = 0 if module.group_size == module.in_features else module.group_size
        groups.setdefault((module.bits, size), []).append(name)
    linears = (name for name, module in run.base.named_modules() if isinstance(module, torch.nn.Linear))
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": [name for name in linears if name not in packed],
        "config_groups": {
            f"group_{index}": {
                "targets": names,
                "weights": {
                    "num_bits": width,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group" if size else "channel",
                    "group_size": size or None,
                    "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
            }
            for index, ((width, size), names) in enumerate(sorted(groups.items()))
        },
    }


# -- parts -------------------------------------------------------------------------------------
def load_plain(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """A model folder as plain transformers loads it, without a network."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, **WITHOUT_KERNELS)


def write_model_files(run: TunedRun, out: Path) -> None:
    """Write what makes a model of the stored weights in `out`: all other tensors, config, index and tokenizer."""
    with safe_open(out / BASE_FILE, framework="pt") as file:
        stored = list(file.keys())
    searched = tuple({f"{key.partition(SEPARATOR)[0]}." for key in stored})
    rest = select_unsearched(run, searched)
    save_file(rest, out / REST_FILE, metadata={"format": "pt"})
    places = {**dict.fromkeys(rest, REST_FILE), **dict.fromkeys(stored, BASE_FILE)}
    size = sum(file.stat().st_size for file in (out / REST_FILE, out / BASE_FILE))
    write_json(out / INDEX_FILE, {"metadata": {"total_size": size}, "weight_map": places})
    tables = list(find_embeddings(run.base))
    ends = {"embedding": tables[0], "head": tables[-1]} if tables else {}
    how = {
        "quant_method": QUANT_METHOD,
        "backend": run.plan["backend"],
        "levels": read_levels(run.plan),
        **ends,
    }
    write_config(run, out, how)
    # `save_pretrained` of a config leaves this key out.
    config = json.loads((out / "config.json").read_text())
    write_json(out / "config.json", {**config, "transformers_weights": NEEDED_IMPORT})


def select_unsearched(run: TunedRun, searched: tuple[str, ...]) -> dict[str, Tensor]:
    """The base's tensors for safetensors, but those of modules whose paths begin so; their biases are among them.

    Of tensors that share memory the first one alone is given.
    """
    distinct: dict[int, tuple[str, Tensor]] = {}
    for key, value in run.base.state_dict().items():
        distinct.setdefault(value.data_ptr() or id(value), (key, value))
    return {
        key: value.detach().contiguous()
        for key, value in distinct.values()
        if not key.startswith(searched) or key.endswith(".bias")
    }


def write_config(run: TunedRun, out: Path, quantization: dict[str, Any]) -> None:
    """Write the model's config with what it says of quantization, that of generation, and the tokenizer."""
    config = copy.deepcopy(run.config)
    config.dtype = run.dtype
    config.quantization_config = quantization
    config.save_pretrained(out)
    run.base.generation_config.save_pretrained(out)
    run.tokenizer.save_pretrained(out)


def list_rearranged_issues(run: TunedRun) -> list[str]:
    """Why a run's linears are none of plain transformers: some were a transposed Conv1D, or stacked with others."""
    modules = dict(run.build_skeleton().named_modules())
    if all(isinstance(modules.get(name), torch.nn.Linear) for name in run.levels):
        return []
    return [f"{run.config.model_type} computes with transposed or stacked weights: export as merged"]


def write_adapter(run: TunedRun, out: Path, *, one_rank: bool) -> None:
    """Copy the adapter directory; with `one_rank` zero rows make all ranks the largest, and so all scalings one.

    B takes what the scaling of its own rank differs by: exact where ranks differ by powers of two.
    """
    assert run.adapter_folder is not None
    shutil.copytree(run.adapter_folder, out)
    rank = max(len(A) for A, _ in run.factors.values())
    config = run.adapter_config | {"base_model_name_or_path": str(out.parent.resolve())}
    if one_rank:
        config |= {"r": rank, "rank_pattern": {}, "alpha_pattern": {}}
    write_json(out / "adapter_config.json", config)
    if not one_rank:
        return
    padded = {}
    for name, (A, B) in run.factors.items():
        more = rank - len(A)
        padded[f"base_model.model.{name}.lora_A.weight"] = F.pad(A, (0, 0, 0, more))
        padded[f"base_model.model.{name}.lora_B.weight"] = F.pad(B * (rank / len(A)), (0, more))
    save_file(padded, out / "adapter_model.safetensors", metadata={"format": "pt"})
