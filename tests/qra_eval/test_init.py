"""What `qra_eval` exports, and that importing it brings neither torch nor transformers."""

from __future__ import annotations

import qra_eval


def test_the_names_that_the_readme_imports_are_there():
    from qra_eval import QuantizedLoRAEvaluator, load
    from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator as original

    assert QuantizedLoRAEvaluator is original and callable(load)
    assert set(qra_eval.__all__) <= set(dir(qra_eval))
