"""The example backend passes the public conformance kit."""

import pytest
from qra_backends import make_backend
from qra_backends.conformance import BackendConformance


class TestInt6(BackendConformance):
    @pytest.fixture(scope="class")
    def backend(self):
        return make_backend("int6")
