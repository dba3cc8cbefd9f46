"""GPTQModel's quantizer and layers behind the contract of a backend; skipped where the library is not installed."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from qra_backends import Backend, SecondMoment
from qra_backends.conformance import BackendConformance
from qra_backends.libraries.gptqmodel import GPTQModelBackend
from torch import nn

installed = importlib.util.find_spec("gptqmodel") is not None
needs_gptqmodel = pytest.mark.skipif(not installed, reason="gptqmodel is not installed (an optional extra)")


class TestGPTQModel(BackendConformance):
    @pytest.fixture(params=[{}, {"group_size": 32}], ids=str)
    def backend(self, request: pytest.FixtureRequest) -> Backend:
        return GPTQModelBackend(**request.param)


def layer_and_inputs() -> tuple[nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    mixing = torch.randn(128, 128) / 12  # correlated inputs: error feedback has something to work with
    return nn.Linear(128, 64, bias=False), torch.randn(512, 128) @ mixing


@needs_gptqmodel
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_weight_is_what_gptqmodel_makes_of_the_same_inputs(bits: int):
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ

    linear, x = layer_and_inputs()
    moment = SecondMoment()
    moment.update(x)
    backend = GPTQModelBackend()
    ours = backend.dequantize(backend.quantize(linear, bits, hessian=moment.hessian()))
    copy = nn.Linear(128, 64, bias=False)
    copy.load_state_dict(linear.state_dict())
    config = QuantizeConfig(bits=bits, group_size=64, sym=False, damp_percent=0.05, offload_to_disk=False)
    task = GPTQ(copy, config)
    task.quantizer.configure(perchannel=True)
    task.add_batch(x[None], linear(x)[None])
    theirs = task.quantize()[0]
    # The library rounds scales to float16 only when it packs, and multiplies in float16.
    assert (ours - theirs).abs().max() < 2e-3 * theirs.abs().max()


@needs_gptqmodel
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_calibration_lowers_the_error_of_the_outputs(bits: int):
    linear, x = layer_and_inputs()
    moment = SecondMoment()
    moment.update(x)
    backend = GPTQModelBackend()
    errors = [
        (backend.quantize(linear, bits, hessian=h)(x) - linear(x)).norm() for h in (moment.hessian(), torch.eye(128))
    ]
    assert errors[0] < 0.9 * errors[1]


@needs_gptqmodel
def test_its_layers_are_not_found_when_the_library_looks_for_kernels():
    from gptqmodel.utils import importer
    from qra_backends.libraries.gptqmodel_linear import GPTQLinear

    found = [value for value in vars(importer).values() if isinstance(value, list) and GPTQLinear in value]
    assert not GPTQLinear.SUPPORTS_BACKEND_SELECTION and not found


@needs_gptqmodel
def test_peft_puts_its_own_gptq_layer_on_top():
    peft = pytest.importorskip("peft")
    pytest.importorskip("optimum", reason="PEFT's GPTQ layer needs optimum")
    linear, x = layer_and_inputs()
    backend = GPTQModelBackend()
    # The norm is there for PEFT, which asks the model's first parameter for its device.
    model = nn.Sequential(backend.quantize(linear, 4, hessian=torch.eye(128)), nn.LayerNorm(64))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["0"]))
    assert type(wrapped.base_model.model[0]).__name__ == "GPTQLoraLinear"
    wrapped(x).square().mean().backward()
    gradient = wrapped.base_model.model[0].lora_B["default"].weight.grad
    assert gradient is not None and gradient.norm() > 0


def test_shapes_that_do_not_fill_its_words_or_groups_are_refused():
    backend = GPTQModelBackend()
    assert "words of 32" in backend.supports(4, 40, 64) and "reference-gptq" in backend.supports(4, 64, 40)
    assert "divide the input features" in backend.supports(4, 64, 96)
    assert backend.supports(3, 64, 128) is None
    with pytest.raises(ValueError, match="group_size must be one of"):
        GPTQModelBackend(group_size=48)
    with pytest.raises(ValueError, match="damping must be"):
        GPTQModelBackend(damping=1)


def test_without_the_library_it_says_so():
    reason = GPTQModelBackend().unavailable()
    assert (reason is None) if installed else "pip install gptqmodel" in reason
