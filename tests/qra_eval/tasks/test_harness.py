"""Scores are those of lm-evaluation-harness, where it is installed (pip install "lm_eval[hf]")."""

from __future__ import annotations

import re

import pytest
import torch

from qra_eval.models.tiny import make_tiny_model
from qra_eval.tasks.published import STRICT, GSM8KTask, extract_answer
from qra_eval.tasks.scoring import generate_answers

huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="lm_eval is not installed")

TEXTS = [
    "so 5\n#### 1,234.",
    "#### $-5",
    "costs $1,200.50, or 7",
    "#### -5.\n#### 4",
    "none",
    "-",
    "12-7",
    "",
]


@pytest.fixture(scope="module")
def loaded():
    return make_tiny_model(dtype=torch.float32)


@pytest.fixture(scope="module")
def harness(loaded):
    return huggingface.HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=2, max_length=256)


def request(kind, arguments):
    from lm_eval.api.instance import Instance

    return Instance(kind, {}, arguments, 0)


def test_greedy_answers_agree(loaded, harness):
    prompts = ["Question: 2 + 3?\nAnswer:", "a", "a longer prompt, of another length"]
    options = {"until": list(GSM8KTask.stop), "max_gen_toks": 20, "do_sample": False}
    theirs = harness.generate_until([request("generate_until", (prompt, options)) for prompt in prompts])
    ids = loaded.tokenizer(prompts)["input_ids"]
    assert generate_answers(loaded.model, loaded.tokenizer, ids, 20, stop=GSM8KTask.stop) == theirs


def test_numbers_agree():
    from lm_eval.filters.extraction import RegexFilter

    by_theirs = RegexFilter(STRICT.pattern, group_select=0, fallback="")
    found = by_theirs.apply([[text] for text in TEXTS], [{}] * len(TEXTS))
    plain = [re.sub(r"\.$", "", re.sub(r"[,$]", "", text)) or None for (text,) in found]
    assert [extract_answer(text) for text in TEXTS] == plain
