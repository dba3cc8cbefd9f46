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
    "qra_backends.reference.feedback_triton",
    "qra_backends.trellis.decode_triton",
    "qra_backends.trellis.viterbi_triton",
}
NEEDS: dict[str, tuple[str, set[str], set[str]]] = {
    # library: (distribution, modules that import it at the top, backends)
    "bitsandbytes": ("bitsandbytes", set(), {"bitsandbytes", "mixed"}),
    "compressed_tensors": ("compressed-tensors", set(), set()),
    "triton": ("triton", TRITON_KERNELS, set()),
    "ray": ("ray", set(), set()),
    "vllm": ("vllm", {"qra_backends.served.vllm_plugin"}, set()),
    "llama_cpp_py_sync": ("llama-cpp-py-sync", set(), {"gguf"}),
}


def test_without_optional_libraries_all_the_rest_works():
    if not any(map(importlib.util.find_spec, NEEDS)):
        pytest.skip("none of them is installed here: the whole suite runs without them")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    distributions = [needs[0] for needs in NEEDS.values()]
    command = [sys.executable, str(SCRIPT), ",".join(NEEDS), ",".join(distributions)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    refused = json.loads(done.stdout.splitlines()[-1])
    modules, backends = (set().union(*(needs[i] for needs in NEEDS.values())) for i in (1, 2))
    assert set(refused["modules"]) == modules
    assert set(refused["backends"]) == backends
    for distribution, _, backends in NEEDS.values():
        assert all(distribution in refused["backends"][backend] for backend in backends - {"mixed"})
    assert "bitsandbytes" in refused["backends"]["mixed"]
