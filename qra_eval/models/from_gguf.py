"""An ordinary model folder from a GGUF file, by transformers' own loader; a broken file is refused in one line."""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gguf
import numpy as np
import torch
from filelock import FileLock

from qra_eval.models.loaded import WITHOUT_KERNELS, get_cache_root, make_cache_error
from qra_search.errors import BadInput, first_line

CONVERSION = 2
"""Raised whenever the folder that `convert_gguf` writes changes, so that cached ones are made again."""


class BoundedReader(gguf.GGUFReader):
    """Metadata and table of tensors, read no further than the file goes.

    gguf 0.19 reads beyond the end as nothing: where the length of an array is damaged it would loop for ever.
    """

    def _get(self, offset: Any, dtype: Any, count: Any = 1, *args: Any, **options: Any) -> Any:
        if isinstance(self.data, np.memmap):
            plain: Any = self.data.view(np.ndarray)  # slices of a memmap take ten times as long
            self.data = plain
        found = super()._get(offset, dtype, count, *args, **options)
        if len(found) < int(count):
            raise ValueError(f"the file ends before the value at byte {int(offset)} does")
        return found


def read_value(path: str | Path, key: str) -> Any:
    """A field of a file's metadata, None if it has none; raises BadInput if the file is broken."""
    with _convert_errors(path):
        field = BoundedReader(path).get_field(key)
    return None if field is None else field.contents()


def convert_gguf(path: Path, dtype: torch.dtype) -> Path:
    """The folder of a GGUF file's model, its weights dequantized to `dtype`; converted once and kept in the cache.

    Of several processes one converts, and the others wait for it.
    """
    state = path.stat()
    models = get_cache_root() / "models"
    key = f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {dtype} {CONVERSION}"
    folder = models / f"gguf-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    try:
        models.mkdir(parents=True, exist_ok=True)
        lock = FileLock(models / f".{folder.name}.lock")
        with lock, tempfile.TemporaryDirectory(prefix=".", dir=models) as partial:
            if not folder.is_dir():
                with _convert_errors(path):
                    header = BoundedReader(path)
                    if any("rope.scaling.type" in name for name in header.fields):
                        problem = "transformers ignores the rotary scaling of this file"
                        warnings.warn(f"{path}: {problem}, so long texts may come out worse", stacklevel=3)
                    # transformers asks gguf for both once: it reads a file for each part of a model, and maps all names
                    # of tensors for each module, which takes 20 seconds for SmolLM2.
                    names = cache(gguf.get_tensor_name_map)
                    with patch.multiple("gguf", GGUFReader=lambda _: header, get_tensor_name_map=names):
                        model, tokenizer = _read_model(path, dtype)
                for part in (model, tokenizer):
                    part.save_pretrained(Path(partial) / "model")
                (Path(partial) / "model").rename(folder)
    except OSError as error:
        raise make_cache_error(models, error) from error
    return folder


def _read_model(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    source: dict[str, Any] = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    options: dict[str, Any] = {**WITHOUT_KERNELS, "dtype": dtype, "ignore_mismatched_sizes": True}
    if hasattr(transformers, "GgufConfig"):  # since 5.25 some families stay packed where the hub has a kernel
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(StringIO()):
            loaded: Any = AutoModelForCausalLM.from_pretrained(**source, **options, output_loading_info=True)
    finally:
        logging.set_verbosity(level)
    model, report = loaded
    wrong = sorted(report["missing_keys"]) + sorted(name for name, *_ in report["mismatched_keys"])
    if wrong:
        raise BadInput(
            f"{path}: {len(wrong)} tensors are missing or have another shape, such as {wrong[0]}: "
            "download it again, or give another model"
        )
    if hasattr(
        model, "hf_quantizer"
    ):  # it is marked as quantized although it is not, and so refuses to be saved
        model.hf_quantizer.remove_quantization_config(model)
    return model, AutoTokenizer.from_pretrained(**source)


@contextmanager
def _convert_errors(path: str | Path) -> Iterator[None]:
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(
            f"{path} is not a GGUF file of a known model, or is damaged ({first_line(error)})"
        ) from error
