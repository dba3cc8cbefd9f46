"""What `qra_eval` exports, and that importing it brings neither torch nor transformers."""

from __future__ import annotations

import pytest

import qra_eval


def test_the_names_that_the_readme_imports_are_there():
    from qra_eval import QuantizedLoRAEvaluator, load
    from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator as original

    assert QuantizedLoRAEvaluator is original and callable(load)
    assert set(qra_eval.__all__) <= set(dir(qra_eval))


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'qra_eval' has no attribute 'nothing'"):
        _ = qra_eval.nothing
    with pytest.raises(ImportError):
        from qra_eval import nothing  # noqa: F401
