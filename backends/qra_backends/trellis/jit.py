"""Functions compiled by numba once a machine: a cache beside the source or in the user's folder, if there is room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., None]) -> Any:
    """A function without the GIL and with nothing reordered; kept in numba's cache if one can be written.

    The cache knows the file of the function and no other: what it calls has to be there too.
    """
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # neither beside the source nor in the user's cache can be written
        return numba.njit(nogil=True, error_model="numpy")(function)
