"""Every backend of the project passes the public conformance kit unchanged."""

from __future__ import annotations

import pytest
from qra_backends import Backend, make_backend
from qra_backends.conformance import BackendConformance


class TestUsualShapes(BackendConformance):
    @pytest.fixture(
        scope="class",
        params=[
            "reference",
            {"name": "reference", "ranges": "mse"},
            {"name": "reference", "group_size": 48},
            "reference-gptq",
            "bitsandbytes",
            {"name": "bitsandbytes-nf4", "blocksize": 32, "double_quant": True},
            "mixed",
            {3: "reference", 4: "reference-gptq"},
            "compressed-tensors",
        ],
        ids=str,
    )
    def backend(self, request: pytest.FixtureRequest) -> Backend:
        return make_backend(request.param)


class TestTrellis(BackendConformance):
    """Shapes are small, as quantizing takes a microsecond a weight."""

    shapes = ((96, 64), (64, 96), (32, 32))
    shape, small = (64, 96), (32, 32)

    @pytest.fixture(scope="class")
    def backend(self) -> Backend:
        return make_backend({"name": "trellis", "L": 10, "block": 16})


class TestGGUF(BackendConformance):
    """Types of 32 weights a block, and one that only llama.cpp's library makes."""

    shapes = ((64, 32), (32, 64))
    shape, small = (32, 96), (32, 64)

    @pytest.fixture(scope="class")
    def backend(self) -> Backend:
        return make_backend({"name": "gguf", "types": ["IQ4_NL", "Q4_1", "Q8_0"]})


class TestGGUFSuperBlocks(BackendConformance):
    """Types of 256 weights a block."""

    shapes = ((16, 256),)
    shape, small = (16, 512), (16, 256)

    @pytest.fixture(scope="class")
    def backend(self) -> Backend:
        return make_backend({"name": "gguf", "types": ["Q2_K", "IQ3_XXS", "Q4_K"]})
