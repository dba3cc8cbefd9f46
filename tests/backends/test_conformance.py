"""Every backend of the project passes the public conformance kit unchanged."""

from __future__ import annotations

import pytest
from qra_backends import Backend, make_backend
from qra_backends.conformance import BackendConformance


class TestReference(BackendConformance):
    @pytest.fixture(params=[{}, {"ranges": "mse"}, {"group_size": 48}], ids=str)
    def backend(self, request: pytest.FixtureRequest) -> Backend:
        return make_backend({"name": "reference", **request.param})


class TestReferenceGPTQ(BackendConformance):
    @pytest.fixture
    def backend(self) -> Backend:
        return make_backend("reference-gptq")


class TestBitsAndBytes(BackendConformance):
    @pytest.fixture(
        params=[
            {},
            {"quant_type": "nf4", "blocksize": 32},
            {"quant_type": "nf4", "double_quant": True},
            {"quant_type": "nf4", "blocksize": 256, "double_quant": True},
        ],
        ids=str,
    )
    def backend(self, request: pytest.FixtureRequest) -> Backend:
        return make_backend({"name": "bitsandbytes", **request.param})


class TestHQQ(BackendConformance):
    @pytest.fixture(params=[{}, {"group_size": 128}], ids=str)
    def backend(self, request: pytest.FixtureRequest) -> Backend:
        return make_backend({"name": "hqq", **request.param})


class TestMixed(BackendConformance):
    @pytest.fixture(
        params=[None, {2: "reference-gptq", 3: "hqq", 4: "bitsandbytes-nf4"}, {3: "hqq", 4: ["reference", "hqq"]}],
        ids=str,
    )
    def backend(self, request: pytest.FixtureRequest) -> Backend:
        return make_backend(request.param or "mixed")


class TestCompressedTensors(BackendConformance):
    @pytest.fixture(params=[{}, {"symmetric": False, "group_size": 128}], ids=str)
    def backend(self, request: pytest.FixtureRequest) -> Backend:
        return make_backend({"name": "compressed-tensors", **request.param})


class TestTrellis(BackendConformance):
    """Shapes are small, as quantizing takes a microsecond a weight."""

    shapes = ((192, 96), (96, 192), (64, 64))
    shape = (96, 192)

    @pytest.fixture(params=[{}, {"L": 10, "block": 16}], ids=str)
    def backend(self, request: pytest.FixtureRequest) -> Backend:
        return make_backend({"name": "trellis", **request.param})


class TestGGUF(BackendConformance):
    """Types of 32 weights a block, and one that only llama.cpp's library makes."""

    shapes = ((64, 32), (32, 64))
    shape, small = (32, 96), (32, 64)

    @pytest.fixture
    def backend(self) -> Backend:
        return make_backend({"name": "gguf", "types": ["IQ4_NL", "Q4_1", "Q8_0"]})


class TestGGUFSuperBlocks(BackendConformance):
    """Types of 256 weights a block. IQ2_* are left to the tests of decoding: their tables take seconds to make."""

    shapes = ((16, 256),)
    shape, small = (16, 512), (16, 256)

    @pytest.fixture
    def backend(self) -> Backend:
        types = ["Q2_K", "IQ3_XXS", "Q4_K"]
        return make_backend({"name": "gguf", "types": types})
