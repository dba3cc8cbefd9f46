"""The first Ctrl-C stops at the next good moment; the second stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def on_interrupt(first: Callable[[], None]) -> Iterator[None]:
    """While it lasts the first Ctrl-C calls `first`, and any further one raises KeyboardInterrupt as ever.

    Outside the main thread, which alone receives Ctrl-C, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = False

    def call_first(signum: int, frame: Any) -> None:
        nonlocal heard
        if heard:
            raise KeyboardInterrupt
        heard = True
        first()

    before = signal.signal(signal.SIGINT, call_first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
