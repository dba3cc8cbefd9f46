"""Quantization backends: how a linear layer is stored at each bit-width, exact to the byte."""

from qra_backends.base import Backend, StorageFormat
from qra_backends.calibration import SecondMoment
from qra_backends.modules import DequantizedLinear, Scales, multiply_scaled
from qra_backends.registry import backend_names, make_backend
from qra_backends.storage import count_live_bytes

__all__ = [
    "Backend",
    "DequantizedLinear",
    "Scales",
    "SecondMoment",
    "StorageFormat",
    "backend_names",
    "multiply_scaled",
    "count_live_bytes",
    "make_backend",
]
