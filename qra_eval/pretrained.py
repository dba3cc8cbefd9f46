"""Once this is imported, transformers loads exported runs: `from_pretrained(folder)` makes the quantized base."""

from __future__ import annotations

import re
from typing import Any

from qra_backends.served.layout import QUANT_METHOD, SEPARATOR
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from qra_eval.models.linears import keep_expert_names, normalize_linears
from qra_eval.tuning.loading import install_quantized_weights

NEEDED_IMPORT = (
    "these weights are stored by qra-toolkit: `import qra_eval.pretrained` before `from_pretrained`"
)
"""`transformers_weights` of an exported config.json: the name of no file, so that transformers alone refuses to load
it, and shows this; else it would skip the weights that it does not know and go on with random ones."""


@register_quantization_config(QUANT_METHOD)
class QRAConfig(QuantizationConfigMixin):
    """What `config.json` says of the weights: the spec of their backend, and the level of each by its path."""

    def __init__(self, backend: Any, levels: dict[str, int | str], **_: Any):
        self.quant_method: Any = QUANT_METHOD  # theirs are of an enumeration
        self.backend, self.levels = backend, levels


@register_quantizer(QUANT_METHOD)
class QRAQuantizer(HfQuantizer):
    """Leaves the searched weights out when transformers loads a model, then puts what is stored in place of them."""

    requires_calibration = True
    is_trainable = True
    quantization_config: QRAConfig

    def update_attn_implementation(self, config: Any) -> Any:
        """The first hook that is given the config: from here on it names no file."""
        config.transformers_weights = None
        return config

    update_tp_plan = update_attn_implementation
    """The same hook of transformers 5.0."""

    def is_serializable(self) -> bool:
        return False

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Any = (), **kwargs: Any
    ) -> None:
        normalize_linears(model)
        # transformers would look for either end of a tied table in the files.
        self.tied, model.all_tied_weights_keys = model.all_tied_weights_keys, {}
        self.files = checkpoint_files
        names = map(re.escape, [*(f"{name}.weight" for name in self.quantization_config.levels), *self.tied])
        model._keys_to_ignore_on_load_missing = {
            *(model._keys_to_ignore_on_load_missing or ()),
            *(f"^{n}$" for n in names),
        }
        model._keys_to_ignore_on_load_unexpected = {
            *(model._keys_to_ignore_on_load_unexpected or ()),
            SEPARATOR,
        }

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        model.all_tied_weights_keys, config = self.tied, self.quantization_config
        model.tie_weights()
        install_quantized_weights(model, config.backend, config.levels, self.files, model.device)
        keep_expert_names(model)
