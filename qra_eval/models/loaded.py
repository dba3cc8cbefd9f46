"""A loaded model: frozen, in evaluation mode, with its tokenizer and the identity of its weights."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import logging
import mmap
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qra_eval.models.embeddings import find_embeddings
from qra_eval.models.linears import find_linears, normalize_linears
from qra_search.errors import BadInput

WEIGHTS_SUFFIX = ".safetensors"
_libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None


class CheckpointPages:
    """Pages of the checkpoints that this process has mapped into memory; none but on Linux."""

    def __init__(self) -> None:
        lines = Path("/proc/self/maps").read_text().splitlines() if _libc is not None else []
        ranges = [line.split()[0].split("-") for line in lines if line.endswith(WEIGHTS_SUFFIX)]
        self.ranges = [(int(start, 16), int(stop, 16)) for start, stop in ranges]

    def drop_pages(self, tensor: Tensor) -> None:
        """Let go of the pages of a tensor on the host that nobody has written to; they are read again at its use."""
        address = tensor.data_ptr()
        if _libc is None or not any(first <= address < last for first, last in self.ranges):
            return
        start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = (address + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if stop > start:
            _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)


log = logging.getLogger(__name__)

SLICES, SLICE_BYTES = 16, 4096
WORDS_PER_SUM = 1 << 19
"""64-bit words of a tensor that are summed at a time, and let go."""


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model ready to be searched.

    Attributes:
        model: frozen, in evaluation mode, every searchable linear an `nn.Linear`.
        name: how it was asked for; loads the same model again. `spec` is it with paths made absolute.
        fingerprint: hash of the weights, equal wherever they came from.
        weights: whether there are any; without, the model is on the meta device, and the tokenizer may be None.
    """

    model: nn.Module
    tokenizer: Any
    name: str
    fingerprint: str
    spec: str
    weights: bool = True


def prepare_model(
    model: Any,
    tokenizer: Any,
    device: str | torch.device,
    *,
    stream: bool = False,
    weights: bool = True,
    **fields: Any,
) -> LoadedModel:
    """Normalise, freeze and place a model; give the tokenizer a padding token if it has none.

    By `stream` and `weights` as in `load_model`; `place_embeddings` puts streamed tables where they are needed.
    """
    model.requires_grad_(False).eval()
    normalize_linears(model)
    if tokenizer is not None and tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not weights:
        shape = json.dumps([type(model).__name__, model.config.to_dict()], default=str)
        digest = f"shape-{hashlib.sha256(shape.encode()).hexdigest()[:16]}"
        return LoadedModel(model, tokenizer, fingerprint=digest, weights=False, **fields)
    digest = compute_fingerprint(model, release=stream)
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(make_input_contiguous)
    mapped: set[int] = set()
    if stream:
        mapped = {id(p) for found in find_linears(model) for p in found.module.parameters()}
        mapped |= {id(table.weight) for table in find_embeddings(model).values()}
    for tensor in [*model.parameters(), *model.buffers()]:
        if id(tensor) not in mapped:
            tensor.data = tensor.data.to(device)
    return LoadedModel(model, tokenizer, fingerprint=digest, **fields)


def get_position_table_size(model: nn.Module) -> int | None:
    """Most tokens of a row that a model with a table of positions takes; None where it computes them."""
    tables = (name for name, module in model.named_modules() if isinstance(module, nn.Embedding))
    if not any(name.rpartition(".")[2] in POSITION_TABLES for name in tables):
        return None
    most: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)  # type: ignore[operator, union-attr]
    return most


def get_head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def make_input_contiguous(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Before a head is called with the last positions alone: in half precision on a CPU, torch multiplies rows that do
    not lie side by side one by one, with a copy of the head for each."""
    return (args[0].contiguous(), *args[1:])


def compute_fingerprint(model: nn.Module, *, release: bool = False) -> str:
    """Hash of the model's class and tensors: names, shapes, types, up to 64 KiB of each, evenly spaced, and the sum of
    its 64-bit words: a sum costs a twentieth of a hash, and tells a tensor from one with other rows.

    By `release` pages of tensors that are mapped from a file, and were never written to, are let go.
    """
    files = CheckpointPages() if release else None
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        if len(flat) <= SLICES * SLICE_BYTES:
            digest.update(flat.numpy().tobytes())
        else:
            starts = torch.linspace(0, len(flat) - SLICE_BYTES, SLICES, dtype=torch.float64).long().tolist()
            digest.update(b"".join(flat[start : start + SLICE_BYTES].numpy().tobytes() for start in starts))
        words = flat[: len(flat) // 8 * 8]
        words = words if words.storage_offset() % 8 == 0 else words.clone()
        total = 0
        for part in words.view(torch.int64).split(WORDS_PER_SUM):
            total += int(part.sum())
            if files is not None:
                files.drop_pages(part)
        digest.update((total % 2**64).to_bytes(8, "little"))
    return digest.hexdigest()[:16]


IRRELEVANT_FIELDS = re.compile(
    r"_.*|.*token_ids?|architectures|(torch_)?dtype|transformers_version|use_cache|return_dict"
)
"""Fields of a config, wherever they are in it, that no hidden state follows from."""


def hash_config(model: nn.Module) -> str:
    """Hash of what a model's config says of computing where no tensor does: the base of rotary positions."""

    def drop_not_computed(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        return {
            name: drop_not_computed(value)
            for name, value in part.items()
            if not IRRELEVANT_FIELDS.fullmatch(str(name))
        }

    said = drop_not_computed(model.config.to_diff_dict())  # type: ignore[operator, union-attr]
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:8]


POSITION_TABLES = ("wpe", "embed_positions", "position_embeddings")
"""What GPT-2, OPT and others call the embedding of positions."""
STORAGE_DTYPE = torch.bfloat16
"""In which a model is kept unless the caller asks otherwise, on every machine: bytes are counted in it."""

WITHOUT_KERNELS = {"use_kernels": False}
"""For `from_pretrained`: since 5.25 transformers fetches kernels from the hub unasked, which compute otherwise."""

PROBE_SHAPE = (512, 576, 1536)
PROBE_ROUNDS = 12
FASTER_SHARE = 0.9
"""bfloat16 is computed in where it takes less than this share of float32's time."""


@functools.cache
def choose_compute_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """bfloat16 where the device multiplies in it fast, float32 elsewhere.

    On a CPU a small product is timed in both: without AVX512-BF16 or AMX bfloat16 is emulated, and on some that have
    AVX512-BF16 it takes twice as long as float32, on others half.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        log.warning(
            "this GPU only emulates bfloat16, which is many times slower than float32 (GPUs of compute capability 8.0 "
            "and above have it). --set model.dtype=float32 makes the run faster, and the model takes twice the memory"
        )
        return torch.float32
    if kind != "cpu":
        return torch.float32
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if not any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):
        return torch.float32
    tokens, width, out = PROBE_SHAPE
    x, w = torch.ones(tokens, width), torch.ones(out, width)
    best: dict[torch.dtype, float] = {}
    threads = torch.get_num_threads()
    # One thread: of several, those that wait for a busy core decide, and two processes of one run would differ.
    torch.set_num_threads(1)
    try:
        for _ in range(PROBE_ROUNDS):  # in turn, so that a busy moment meets both; the first of each warms up
            for dtype in (torch.bfloat16, torch.float32):
                y, v = x.to(dtype), w.to(dtype)
                start = time.perf_counter()
                torch.nn.functional.linear(y, v)
                best[dtype] = min(best.get(dtype, float("inf")), time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return torch.bfloat16 if best[torch.bfloat16] < FASTER_SHARE * best[torch.float32] else torch.float32


def get_cache_root() -> Path:
    """Folder for what can be made again: `QRA_CACHE`, else `qra` in the user's cache folder."""
    given = os.environ.get("QRA_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qra"


def make_cache_error(folder: Path, error: OSError) -> BadInput:
    return BadInput(
        f"cannot write to the cache {folder} ({error.strerror}): set QRA_CACHE to a folder that you can write to"
    )
