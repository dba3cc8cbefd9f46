"""Random Llama-shaped model folders of any size, written tensor by tensor, and rows for them: for `scale.py`
and `gpu.py`.

A folder is written once; a second call finds it. No more than a tensor is in memory, however large the model.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qra_eval.models.tiny import byte_tokenizer

SHARD_BYTES = 1 << 30
SPREAD = 0.02
"""Standard deviation of the weights."""
WORDS = (
    "a",
    "river",
    "of",
    "small",
    "stones",
    "ran",
    "under",
    "seven",
    "bridges",
    "while",
    "old",
    "men",
    "counted",
)
ROWS = {"train": 160, "validation": 8, "test": 8}
PROMPT_BYTES, ANSWER_BYTES = (120, 330), (80, 150)
"""Least and most; a byte is a token. Answers are longer than those that a task writes out and scores."""


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes; `kv` are its key and value heads."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv: int
    vocabulary: int = 32000

    @property
    def layer_weights(self) -> int:
        """Weights of a layer's linears."""
        keys = self.kv * (self.hidden // self.heads)
        return self.hidden * (2 * self.hidden + 2 * keys + 3 * self.intermediate)


SHAPES = {
    "tiny": Shape(128, 256, 4, 4, 2, 320),
    "0.4B": Shape(1024, 2816, 24, 16, 4),
    "1B": Shape(2048, 5632, 20, 16, 4),
    "3B": Shape(3072, 8192, 26, 24, 8),
    "8B": Shape(4096, 14336, 32, 32, 8, 128256),
}


def write_model(shape: Shape, folder: Path, *, device: str = "cpu") -> Path:
    """A model folder in bfloat16, the same at every call; a shard has at most 1 GiB, or one tensor that is larger.

    Args:
        device: where the numbers are drawn.
    """
    if (folder / "config.json").exists():
        return folder
    from transformers import LlamaConfig

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(str(folder))
    generator = torch.Generator(device).manual_seed(0)
    shards = list(_shards(shape))
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(shard, folder / name, generator)
        where |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": sum(map(_bytes, _tensors(shape).values()))}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.save_pretrained(str(folder))  # last: a folder that has it is whole
    return folder


def write_rows(folder: Path) -> Path:
    """A folder of made-up rows, 200 to 480 tokens long, for the `jsonl` task; the same at every call."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for split, count in ROWS.items():
        rows = [
            {"prompt": f"{split} {n}:" + _text(draw, PROMPT_BYTES), "answer": _text(draw, ANSWER_BYTES)}
            for n in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _text(draw: random.Random, size: tuple[int, int]) -> str:
    text, length = "", draw.randint(*size)
    while len(text) < length:
        text += " " + draw.choice(WORDS)
    return text[:length].rstrip() + "."


def _tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Shapes of a Llama's tensors by name, layer by layer."""
    hidden, wide, keys = shape.hidden, shape.intermediate, shape.kv * (shape.hidden // shape.heads)
    layer = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    made: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocabulary, hidden)}
    for n in range(shape.layers):
        made |= {f"model.layers.{n}.{name}.weight": size for name, size in layer.items()}
    return made | {"model.norm.weight": (hidden,), "lm_head.weight": (shape.vocabulary, hidden)}


def _shards(shape: Shape) -> Iterator[dict[str, tuple[int, ...]]]:
    shard: dict[str, tuple[int, ...]] = {}
    for name, size in _tensors(shape).items():
        if shard and sum(map(_bytes, shard.values())) + _bytes(size) > SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = size
    yield shard


def _write_shard(shard: dict[str, tuple[int, ...]], path: Path, generator: torch.Generator) -> None:
    """The format is a length, a header in JSON, and the tensors' bytes: nothing has to wait for the rest."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in shard.items():
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [end, end + _bytes(size)]}
        end += _bytes(size)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for size in shard.values():
            file.write(_drawn(size, generator).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())  # pages that wait to be written are no part of what is measured later


def _drawn(size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Norms are ones, the rest is Gaussian."""
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    drawn = torch.empty(size, dtype=torch.bfloat16, device=generator.device)
    return drawn.normal_(0, SPREAD, generator=generator).cpu()


def _bytes(size: tuple[int, ...]) -> int:
    return 2 * math.prod(size)
