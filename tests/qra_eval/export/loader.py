"""Run as a script, in a process without this project: loads exports with the other tools, and saves their logits.

Argument: a JSON file with a list of jobs {kind, path, dtype, ids, out}; what cannot be imported is answered by a file
`out`.skipped with the reason.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

warnings.filterwarnings("ignore")
torch.set_num_threads(1)


def plain(path: Path, dtype: torch.dtype, **options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True, **options)


def compressed(path: Path, dtype: torch.dtype):
    import compressed_tensors  # noqa: F401 - transformers would raise only later
    from peft import PeftModel

    model = plain(path, dtype)
    model(input_ids=torch.tensor([[1, 2]]))  # decompresses: peft finds no weight before
    return PeftModel.from_pretrained(model, str(path / "adapter"), autocast_adapter_dtype=False)


def compressed_dequantize(path: Path, dtype: torch.dtype):
    import compressed_tensors  # noqa: F401
    from transformers import CompressedTensorsConfig

    return plain(path, dtype, quantization_config=CompressedTensorsConfig(dequantize=True))


def gguf(path: Path, dtype: torch.dtype):
    """The GGUF model with the GGUF adapter added to its weights, as llama.cpp adds it to the outputs."""
    model = plain(path, dtype, gguf_file="model.gguf")
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    paired = model.config.model_type in ("llama", "mistral")
    modules = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    alpha, factors = lora(path / "adapter.gguf")
    for name in sorted({key.rpartition(".lora_")[0] for key in factors}):
        _, layer, what, _ = name.split(".")
        A, B = factors[f"{name}.lora_a"], factors[f"{name}.lora_b"]
        if paired and what in heads:  # rows go pair by pair: back to first halves, second halves
            B = np.concatenate(
                [np.concatenate([head[0::2], head[1::2]]) for head in B.reshape(heads[what], -1, B.shape[1])]
            )
        delta = torch.from_numpy(alpha / A.shape[0] * (B @ A))
        model.get_submodule(f"model.layers.{layer}.{modules[what]}").weight.data += delta.to(dtype)
    return model


def lora(path: Path):
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(path)
    text = {key: bytes(reader.fields[key].parts[-1]).decode() for key in ("general.type", "adapter.type")}
    assert text == {"general.type": "adapter", "adapter.type": "lora"}, text
    factors = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    return float(reader.fields["adapter.lora.alpha"].parts[-1][0]), factors


KINDS = {
    "merged": plain, "compressed-tensors": compressed, "compressed-dequantize": compressed_dequantize, "gguf": gguf,
}  # fmt: skip


@torch.no_grad()
def main(jobs: Path) -> None:
    for job in json.loads(jobs.read_text()):
        out = Path(job["out"])
        try:
            model = KINDS[job["kind"]](Path(job["path"]), getattr(torch, job["dtype"]))
        except ImportError as error:
            out.with_suffix(".skipped").write_text(str(error))
            continue
        model.eval()
        ids = load_file(job["ids"])
        save_file({key: model(input_ids=value, use_cache=False).logits.float() for key, value in ids.items()}, out)
    ours = sorted(name for name in sys.modules if name.split(".")[0] in ("qra_eval", "qra_search", "qra_backends"))
    assert not ours, ours


if __name__ == "__main__":
    main(Path(sys.argv[1]))
