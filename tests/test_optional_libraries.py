"""Without optional libraries everything else works, and what needs them says so."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("without_library.py")

TRITON_KERNELS = {
    "qra_backends.ggml.decode_triton",
    "qra_backends.kernels.groupwise",
    "qra_backends.libraries.hqq_triton",
    "qra_backends.reference.feedback_triton",
    "qra_backends.trellis.decode_triton",
    "qra_backends.trellis.viterbi_triton",
}
NEEDS = {
    # library: (distribution, modules that import it at the top, backends, strategies)
    "hqq": ("hqq", {"qra_backends.libraries.hqq_linear"}, {"hqq", "mixed"}, set()),
    "bitsandbytes": ("bitsandbytes", {"qra_backends.libraries.bitsandbytes_layers"}, {"bitsandbytes", "mixed"}, set()),
    "compressed_tensors": ("compressed-tensors", set(), set(), set()),
    "optuna": ("optuna", set(), set(), {"optuna"}),
    "nevergrad": ("nevergrad", set(), set(), {"nevergrad"}),
    "triton": ("triton", TRITON_KERNELS, set(), set()),
    "ray": ("ray", set(), set(), set()),
    "lm_eval": ("lm-eval", set(), set(), set()),
    "llama_cpp_py_sync": ("llama-cpp-py-sync", set(), {"gguf"}, set()),
}


APART = ("bitsandbytes",)
"""The default backend needs this one and hqq, and names the first that it lacks: so the two are hidden one by one. The
others are hidden along with hqq, which costs no process more."""


@pytest.mark.parametrize("libraries", [*((name,) for name in APART), tuple(n for n in NEEDS if n not in APART)])
def test_without_optional_libraries_all_the_rest_works(libraries: tuple[str, ...]):
    if not any(map(importlib.util.find_spec, libraries)):
        pytest.skip(f"{', '.join(libraries)} are not installed here: the whole suite runs without them")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    distributions = [NEEDS[name][0] for name in libraries]
    command = [sys.executable, str(SCRIPT), ",".join(libraries), ",".join(distributions)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    refused = json.loads(done.stdout.splitlines()[-1])
    lacking = {name for name in NEEDS if name in libraries or importlib.util.find_spec(name) is None}
    modules, backends, strategies = (set().union(*(NEEDS[name][i] for name in lacking)) for i in (1, 2, 3))
    assert set(refused["modules"]) == modules
    assert not refused["commands"]
    assert set(refused["backends"]) == backends
    assert set(refused["strategies"]) == strategies
    for name in libraries:
        assert all(NEEDS[name][0] in refused["backends"][backend] for backend in NEEDS[name][2])
        assert all(NEEDS[name][0] in refused["strategies"][strategy] for strategy in NEEDS[name][3])
    if "hqq" in libraries:
        assert "install the extra hqq" in refused["backends"]["hqq"]
