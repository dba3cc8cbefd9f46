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
            {"quant_type": "fp4"},
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
        params=[None, {2: "reference-gptq", 3: "hqq", 4: "bitsandbytes-fp4"}, {3: "hqq", 4: ["reference", "hqq"]}],
        ids=str,
    )
    def backend(self, request: pytest.FixtureRequest) -> Backend:
        return make_backend(request.param or "mixed")
