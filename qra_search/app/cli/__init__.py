"""The `qra` command: one file a family of commands, imported when one of them is called."""

from __future__ import annotations

import os
import sys
import warnings

from qra_search.app.cli.app import run_safely


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit status: 0 done, 1 the run failed, 2 bad input."""
    # Libraries that print bars of their own would break the live view; whoever wants them sets the variable.
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    # A card's memory is not cut into pieces that fit no later plan; read when torch first takes some.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of libraries, within the live view; `python -W` shows them
    sys.exit(run_safely(sys.argv[1:] if arguments is None else arguments))


_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "BITSANDBYTES_NOWELCOME": "1",
    "TQDM_DISABLE": "1",
}
