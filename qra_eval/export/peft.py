"""Format `peft`: the adapter as an ordinary PEFT directory, its exact base rebuilt by one call."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from qra_eval.export.base import Exported, Exporter, compared
from qra_eval.export.tuned import TunedRun
from qra_eval.tuning.saved import ADAPTER_FOLDER, ADAPTER_README, BASE_FILE, PLAN_FILE, load

README = """---
library_name: peft
base_model: {model}
tags: [lora, qra]
---
# A LoRA adapter on a mixed-precision base

`adapter/` is an ordinary PEFT directory. Its ranks differ from linear to linear (`rank_pattern`), its alpha does not.
It was tuned on a base whose linears have the bit-widths in `plan.json`, and is exact on that base only:

```python
import qra_eval

model, tokenizer = qra_eval.load("{folder}")
```

gives the tuned model as a `PeftModel`, with the very logits it had after tuning. On the unquantized model,

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({model!r}), "{folder}/adapter")
```

loads too, but is another model: the adapter makes up for rounding errors that are then not there.
"""


class PEFTExporter(Exporter):
    """The run's own files, with a README that says how to load them.

    Args:
        pad_ranks: zero rows make all ranks equal to the largest, for tools that know one rank only. The adapter
            computes the same, and takes more bytes.
    """

    name = "peft"
    summary = "the adapter as a PEFT directory, exact on the base that qra_eval.load rebuilds"

    def __init__(self, pad_ranks: bool = False):
        self.pad_ranks = pad_ranks

    def check(self, run: TunedRun) -> list[str]:
        return []

    def write(self, run: TunedRun, out: Path) -> Exported:
        write_adapter(run, out / ADAPTER_FOLDER, pad_ranks=self.pad_ranks)
        for name in (BASE_FILE, PLAN_FILE):
            shutil.copyfile(run.folder / name, out / name)
        (out / "README.md").write_text(README.format(model=run.spec, folder=out.name))
        tuned, _ = load(out, trust_remote_code=run.trusted)
        note = f'exact: `qra_eval.load("{out}")` rebuilds the quantized base under the adapter'
        return compared(out, [note], run, tuned)


def write_adapter(run: TunedRun, out: Path, *, pad_ranks: bool = False, base: Path | None = None) -> None:
    """Copy the adapter directory; with `pad_ranks` at one rank, and so one scaling, for all linears.

    B takes what the scaling of its own rank differs by: exact where ranks differ by powers of two.

    Args:
        base: folder of the model that it belongs on, where that is not the run's own.
    """
    shutil.copytree(run.adapter_folder, out)
    config = json.loads((out / "adapter_config.json").read_text())
    if base is not None:
        config["base_model_name_or_path"] = str(base)
        (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        (out / ADAPTER_README).unlink(missing_ok=True)  # it says what the run's own belongs on
    if not pad_ranks:
        return
    rank = max(factors.rank for factors in run.factors.values())
    scaling = next(f.scaling for f in run.factors.values() if f.rank == rank)
    config.update(r=rank, lora_alpha=scaling * rank, rank_pattern={}, alpha_pattern={})
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    padded = {}
    for key, tensor in load_file(out / "adapter_model.safetensors").items():
        name, is_a, _ = key.removeprefix("base_model.model.").partition(".lora_A.")
        axis = 0 if is_a else 1
        if not is_a:
            tensor = tensor * (run.factors[name.partition(".lora_B.")[0]].scaling / scaling)
        shape = list(tensor.shape)
        shape[axis] = rank - shape[axis]
        padded[key] = torch.cat([tensor, tensor.new_zeros(shape)], dim=axis).contiguous()
    save_file(padded, out / "adapter_model.safetensors", metadata={"format": "pt"})
