"""Functions compiled by numba once a machine: the cache is beside the source, or in the user's folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numba

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
"""Options of numba, without the GIL; fused multiply-adds quicken Viterbi's algorithm by a fifth."""


def compile_once(function: Callable[..., None], **options: Any) -> Any:
    """A compiled function, kept in numba's cache if one can be written.

    The cache knows the file of the function and no other: what it calls has to be there too.
    """
    try:
        return numba.njit(cache=True, **{**OPTIONS, **options})(function)
    except RuntimeError:  # neither beside the source nor in the user's folder
        return numba.njit(**{**OPTIONS, **options})(function)


compile_sums = partial(compile_once, fastmath=True)
"""The same with sums in any order."""
