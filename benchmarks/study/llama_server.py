"""Answers that llama.cpp's own server writes with the GGUF export of a tuned run, many at a time."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from benchmarks.study.generated import NEW_TOKENS, PROMPT_TOKENS, Ask
from qra_eval.export import export
from qra_eval.export.gguf import ADAPTER_FILE, MODEL_FILE
from qra_eval.tasks.base import Task
from qra_eval.tasks.encoding import prompt_ids
from qra_eval.tasks.example import Example
from qra_eval.tasks.gsm8k import STOP

SLOTS = 64
"""Answers that are written at a time."""


@contextmanager
def served(server: str, folder: Path, task: Task, tokenizer: Any, threads: int) -> Iterator[Ask]:
    """What asks a server that runs while the context lasts.

    Args:
        server: the program `llama-server`.
        folder: of the tuned run, which is exported into its `gguf` unless it is there.
    """
    out = folder / "gguf"
    if not out.exists():
        print(*export(folder, "gguf", out).notes, sep="\n", flush=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = SLOTS * (PROMPT_TOKENS + NEW_TOKENS)
    command = [server, "-m", out / MODEL_FILE, "--lora", out / ADAPTER_FILE, "--port", port, "-np", SLOTS, "-c", size]
    command += ["-t", threads, "-tb", threads]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def asked(path: str, data: dict[str, Any] | None = None) -> Any:
        body = None if data is None else json.dumps(data).encode()
        with urlopen(Request(f"http://127.0.0.1:{port}{path}", body, {"Content-Type": "application/json"})) as answer:
            return json.load(answer)

    def written(examples: Sequence[Example], most: int) -> list[str]:
        prompts = [prompt_ids(tokenizer, task.prompt(e, tokenizer), special=not task.chat) for e in examples]
        wanted = [{"prompt": ids, "n_predict": most, "temperature": 0, "stop": STOP} for ids in prompts]
        with ThreadPoolExecutor(SLOTS) as pool:
            return [said["content"] for said in pool.map(lambda data: asked("/completion", data), wanted)]

    try:
        while True:
            try:
                asked("/health")
                break
            except URLError:  # it is not up, or loads
                if process.poll() is not None:
                    raise RuntimeError(f"{server} ended with status {process.returncode}") from None
                time.sleep(1)
        yield written
    finally:
        process.terminate()
        process.wait()
