"""One prompt answered by a tuned run, greedily and streamed, with its speed and the memory that it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from qra_eval.tasks.encoding import encode_prompt
from qra_eval.tasks.scoring import generate_answers
from qra_eval.tuning.loading import load

OnText = Callable[[str], None]
LIBRARIES = ("peft", "numba")
"""Imported when they are first needed, 320 MiB that are not the model's."""


@dataclass(frozen=True)
class Generation:
    """An answer, and what it took.

    Attributes:
        tokens_per_second: of the answer but its first token, which waits for the prompt; 0 for fewer than two.
        resident_bytes: most that the process held after a token, beyond what it held before the model was loaded.
    """

    text: str
    tokens: int
    tokens_per_second: float
    resident_bytes: int


class Meter:
    """Collects an answer as its tokens come; made before the model is loaded."""

    def __init__(self, on_text: OnText | None = None):
        self._on_text = on_text
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        self._most = self._before
        self._text = ""
        self._times: list[float] = []

    def count_token(self) -> None:
        self._times.append(time.perf_counter())
        self._most = max(self._most, self._process.memory_info().rss)

    def add_text(self, text: str) -> None:
        self._text += text
        if self._on_text is not None:
            self._on_text(text)

    def finish(self) -> Generation:
        count = len(self._times)
        rate = (count - 1) / (self._times[-1] - self._times[0]) if count > 1 else 0.0
        return Generation(self._text, count, rate, self._most - self._before)


def generate(
    folder: str | Path, prompt: str, *, tokens: int = 256, on_text: OnText | None = None, **options: Any
) -> Generation:
    """Answer a prompt in transformers, greedily, until the model ends its answer or has written `tokens` tokens.

    Args:
        prompt: as the model gets it, without a chat template.
        on_text: called with each piece of the answer as it comes.
        options: of `load`.
    """
    for library in LIBRARIES:
        import_module(library)
    meter = Meter(on_text)
    model, tokenizer = load(folder, **options)
    ids, streamer = encode_prompt(tokenizer, prompt), _make_streamer(tokenizer, meter)
    generate_answers(model, tokenizer, [ids], tokens, streamer=streamer)
    return meter.finish()


def _make_streamer(tokenizer: Any, meter: Meter) -> Any:
    """Gives a meter the tokens that `generate` finds, and their text by whole words."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def put(self, value: Any) -> None:
            if not self.next_tokens_are_prompt:
                meter.count_token()
            super().put(value)

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            meter.add_text(text)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
