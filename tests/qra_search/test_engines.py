"""`--engine` decides backend and bits, and refuses what the engine has not."""

from __future__ import annotations

import pytest

from qra_search.app.config import ConfigError, make_config
from qra_search.engines import ENGINES, estimate_resident_bytes, find_engine_rank, unsupported_reason


def test_an_engine_decides_backend_and_bits_where_nothing_else_is_said():
    config = make_config({"engine": "llama.cpp"})
    assert config.quantization.backend == "gguf" and config.space.bits == ENGINES["llama.cpp"].bits
    shown = {
        "engine": "vllm",
        "quantization": {"embeddings": "auto"},
        "space": {"bits": "auto", "granularity": "auto"},
    }
    assert make_config(shown) == make_config({"engine": "vllm"}), "auto is nothing said"
    chosen = {
        "engine": "llama.cpp",
        "space": {"bits": [4, 16]},
        "quantization": {"backend": {"name": "gguf", "types": ["Q4_0"]}},
    }
    config = make_config(chosen)
    assert config.space.bits == (4, 16) and config.quantization.backend["types"] == ["Q4_0"]


@pytest.mark.parametrize(
    "data, said",
    [
        ({"engine": "llama.cp"}, "engine is 'llama.cp': did you mean llama.cpp"),
        (
            {"engine": "llama.cpp", "quantization": {"backend": "hqq"}},
            "engine llama.cpp runs what backend gguf stores",
        ),
        ({"engine": "llama.cpp", "quantization": {"backend": {4: "hqq"}}}, "runs what backend gguf stores"),
        ({"engine": "vllm", "space": {"granularity": "module"}}, "so choose fused or layer"),
        ({"engine": "vllm", "space": {"ranks": [8, 1024]}}, "engine vllm takes at most 512"),
        ({"engine": "vllm", "quantization": {"embeddings": 4}}, "engine vllm has 16"),
        (
            {"engine": "llama.cpp", "space": {"bits": [4, 7]}},
            "space.bits has 7, but engine llama.cpp has 2, 3, 4, 5, 6, 8",
        ),
    ],
)
def test_what_an_engine_has_not_is_refused_in_one_line(data, said):
    with pytest.raises(ConfigError, match=said) as caught:
        make_config(data)
    assert "\n" not in str(caught.value)


def test_models_that_an_engine_cannot_run_are_refused():
    assert unsupported_reason("llama.cpp", "llama") is None and unsupported_reason("vllm", "qwen3") is None
    assert "this model is gpt2" in str(unsupported_reason("llama.cpp", "gpt2"))
    assert "this model is gpt2" in str(unsupported_reason("vllm", "gpt2"))


def test_the_estimate_of_resident_memory_is_within_a_tenth_of_what_was_measured():
    weights, mib, codes = 134_479_872, 1 << 20, {"backend": "mixed-calibrated"}
    for engine, files, own, measured in (  # benchmarks/results/serving
        ("transformers", 34.6, codes, 106),
        ("transformers", 34.6, {"backend": "reference"}, 351),
        ("llama.cpp", 258.3, {"backend": "gguf"}, 291.1),
        ("llama.cpp", 93.8, {"backend": "gguf"}, 126.7),
    ):
        estimate = estimate_resident_bytes(engine, int(files * mib), weights=weights, **own)
        assert abs(estimate - measured * mib) < 0.1 * measured * mib
    assert estimate_resident_bytes("vllm", mib, weights=weights, **codes) is None


def test_fit_rank_an_adapter_is_the_smallest_that_the_engine_can_be_told():
    assert [find_engine_rank("vllm", rank) for rank in (1, 4, 8, 48, 512)] == [1, 8, 8, 64, 512]
    assert find_engine_rank("llama.cpp", 48) == 48
    with pytest.raises(ValueError, match="rank 600 is above 512"):
        find_engine_rank("vllm", 600)
