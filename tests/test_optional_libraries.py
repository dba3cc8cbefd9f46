"""Without any one optional library everything else works, and what needs it says so."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("without_library.py")

NEEDS = {
    # library: (distribution, modules that import it at the top, backends, strategies)
    "hqq": ("hqq", {"qra_backends.libraries.hqq_linear"}, {"hqq", "mixed"}, set()),
    "bitsandbytes": ("bitsandbytes", {"qra_backends.libraries.bitsandbytes_layers"}, {"bitsandbytes", "mixed"}, set()),
    "gptqmodel": ("gptqmodel", {"qra_backends.libraries.gptqmodel_linear"}, {"gptqmodel"}, set()),
    "compressed_tensors": ("compressed-tensors", set(), set(), set()),
    "optuna": ("optuna", set(), set(), {"optuna"}),
    "ray": ("ray", set(), set(), set()),
    "lm_eval": ("lm-eval", set(), set(), set()),
    "llama_cpp_py_sync": ("llama-cpp-py-sync", set(), {"gguf"}, set()),
}


@pytest.mark.parametrize("library", NEEDS)
def test_without_a_library_all_the_rest_works(library: str):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed here: the whole suite runs without it")
    distribution, modules, backends, strategies = NEEDS[library]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), library, distribution], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    refused = json.loads(done.stdout.splitlines()[-1])
    for name in NEEDS:
        if importlib.util.find_spec(name) is None:  # refused here in any case
            modules, backends = modules | NEEDS[name][1], backends | NEEDS[name][2]
    assert set(refused["modules"]) == modules
    assert not refused["commands"]
    assert set(refused["backends"]) == backends
    assert set(refused["strategies"]) == strategies
    for name in NEEDS[library][2]:
        assert distribution in refused["backends"][name]
        if library == "hqq":
            assert "install the extra hqq" in refused["backends"][name]
    assert all(distribution in reason for reason in refused["strategies"].values())
