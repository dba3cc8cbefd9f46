"""llama.cpp's own rounding, from the shared library in the package llama-cpp-py-sync."""

from __future__ import annotations

import ctypes
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qra_backends.ggml.types import GGMLType

PACKAGE = "llama-cpp-py-sync"
_IMPORTANCE_FLOOR = 1e-6
"""Least importance of a column, as a share of the mean: columns that were never seen still have to be coded."""
_ROWS_A_THREAD = 256


def get_missing_reason() -> str | None:
    """Why llama.cpp's library cannot be used, and what brings it; None if it can."""
    try:
        _load_library()
    except OSError as error:
        return f"llama.cpp's library cannot be loaded ({error}): install the extra llama-cpp, or pip install {PACKAGE}"
    return None


def quantize(weight: Tensor, kind: GGMLType, importance: Tensor) -> Tensor:
    """Blocks uint8 (out, bytes of a row) of a float32 weight (out, in), on the weight's device.

    Args:
        importance: (in,), mean squared input of each column, which llama.cpp calls importance matrix.

    Raises:
        OSError: the library is missing.
    """
    from gguf import GGMLQuantizationType

    library, number = _load_library(), GGMLQuantizationType[kind.name]
    source = np.ascontiguousarray(weight.cpu().numpy(), dtype=np.float32)
    rows, columns = source.shape
    weights = importance.to(torch.float32).cpu().numpy()
    least = _IMPORTANCE_FLOOR * max(float(weights.mean()), 1e-30)
    weights = np.ascontiguousarray(np.maximum(weights, least), dtype=np.float32)
    blocks = np.empty((rows, kind.bytes(1, columns)), dtype=np.uint8)
    library.ggml_quantize_init(number)
    at_once = max(_ROWS_A_THREAD, -(-rows // torch.get_num_threads()))

    def fill(start: int) -> None:
        count = min(at_once, rows - start)
        place = (_get_pointer(source), blocks.ctypes.data, start * columns, count, columns)
        library.ggml_quantize_chunk(number, *place, _get_pointer(weights))

    starts = range(0, rows, at_once)
    with ThreadPoolExecutor(len(starts)) as pool:  # the call holds no lock
        list(pool.map(fill, starts))
    return torch.from_numpy(blocks).to(weight.device)


def _get_pointer(array: np.ndarray) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))


@lru_cache(maxsize=1)
def _load_library() -> Any:
    """Raises OSError if it is missing or broken."""
    found = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folders = list(found.submodule_search_locations or ()) if found is not None else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*ggml-base*"))]
    if not files:
        raise OSError(f"the package {PACKAGE} is not installed, or has no ggml library in it")
    library = ctypes.CDLL(str(files[0]))
    floats = ctypes.POINTER(ctypes.c_float)
    library.ggml_quantize_init.argtypes = [ctypes.c_int]
    library.ggml_quantize_init.restype = None
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    sizes = [ctypes.c_int64] * 3
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, floats, ctypes.c_void_p, *sizes, floats]
    return library
