"""What passes through a decoder take beside its weights: sums over the linears and norms of one of its layers.

Of each token autograd keeps, for a layer: what linears read, each tensor once; what q, k, v, gate and up give, and what
the activation gives; inputs of norms, as float32 where the norm computes in it; and what attention keeps of pairs of
tokens. Beside that there are, for a moment, the gradients of the widest part, a dequantized weight, or the logits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from qra_eval.models.attention import ATTENTION_NAME, MAX_PLAIN_TOKENS
from qra_eval.models.embeddings import HEAD_ROWS
from qra_eval.models.linears import EXPERT_PATTERN, find_fused_kind
from qra_eval.models.loaded import get_head_dim
from qra_eval.tasks.batches import LOGIT_ROWS

DEQUANTIZE_BYTES = 5
"""Bytes for each weight while it is dequantized, beside the result: its code, and its value in float32."""
GPU_DEQUANTIZE_BYTES = 1
"""The same on a GPU: its code, by torch's operations; our kernels, which need a compiler, take none."""
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "moe_topk")
"""What configs call the number of experts that a token passes."""
FIRST_EXPERT = re.compile(r"\bexperts\.0\.")


class Activations:
    """Bytes of passes of a model of alike layers, with a quantized base and an adapter at every linear.

    Args:
        layer: the decoder layer, for its norms, with its `linears` by name; there are `layers` of it.
        rank: of the adapters, 0 for none, whose inputs have `dropout` in training.
        decoding: bytes for each weight while it is dequantized, beside the result.
    """

    def __init__(
        self,
        layer: nn.Module,
        linears: Mapping[str, Any],
        config: Any,
        dtype: torch.dtype,
        *,
        layers: int,
        rank: int = 0,
        dropout: float = 0.0,
        checkpointing: bool = False,
        tables: bool = False,
        decoding: int = DEQUANTIZE_BYTES,
    ):
        self.text = config.get_text_config()
        self.attention = config._attn_implementation
        self.wide = dtype.itemsize
        self.layers = layers
        self.rank = rank
        self.checkpointing = checkpointing
        self.tables = tables
        self.hidden = self.text.hidden_size
        self.heads = self.text.num_attention_heads
        self.vocabulary = self.text.vocab_size
        self.adapters = rank * sum(m.in_features + m.out_features for m in linears.values())
        shapes = {(m.out_features, m.in_features) for m in linears.values()}
        largest = max(rows * columns for rows, columns in shapes)
        self.weight = largest * self.wide
        self.decoding = largest * decoding
        rows = min(HEAD_ROWS, self.vocabulary) if tables else 0
        self.head_rows = rows * self.hidden * (self.wide + decoding)
        keys = getattr(self.text, "num_key_value_heads", None) or self.heads
        self.key_width = keys * get_head_dim(self.text)
        self.rotated = self.heads * get_head_dim(self.text) + self.key_width
        self.numbers = self.widest = 0
        self._add_linears(linears, dropout)
        self.norm_bytes = self._count_norm_bytes(layer, linears)

    def _add_linears(self, linears: Mapping[str, Any], dropout: float) -> None:
        """Count the numbers of the arithmetic's dtype that are kept of a token: `numbers`."""
        routed = next((n for name in EXPERTS_PER_TOKEN if (n := getattr(self.text, name, None))), 1)
        inputs: set[tuple[str, str]] = set()
        # The experts of a layer are alike, so the first stands for them.
        chosen = {
            n: m for n, m in linears.items() if not EXPERT_PATTERN.fullmatch(n) or FIRST_EXPERT.search(n)
        }
        experts = 1 + len(linears.keys() - chosen.keys()) // 3
        for name, module in chosen.items():
            is_expert = bool(EXPERT_PATTERN.fullmatch(name))
            times = routed if is_expert else 1
            parent, _, kind = name.rpartition(".")
            fused = find_fused_kind(kind)
            read, made = times * module.in_features, times * module.out_features
            self.numbers += times * self.rank
            if dropout and self.rank:  # of each linear its own: what was dropped, and the rest
                self.numbers += 2 * read
            elif (parent, fused) not in inputs:
                self.numbers += read
            if fused == "qkv":
                self.numbers += made
            elif fused == "gate_up":
                # The first with what the activation gives.
                self.numbers += made if (parent, fused) in inputs else 2 * made
            elif kind == "gate_up_proj":
                self.numbers += made + made // 2
            elif module.out_features != self.hidden:
                self.numbers += made
            elif is_expert:
                self.numbers += made  # that the weights of experts multiply
            # Experts are called one after another, each on its share of the tokens.
            self.widest = max(self.widest, read // experts if is_expert else read)
            inputs.add((parent, fused))

    def _count_norm_bytes(self, layer: nn.Module, linears: Mapping[str, Any]) -> int:
        """Bytes of a token that a layer's norms keep; norms of queries and keys are as wide as these."""
        total = 0
        made = {name.rpartition(".")[2]: module.out_features for name, module in linears.items()}
        for name, module in layer.named_modules():
            weight = getattr(module, "weight", None)
            kind = name.rpartition(".")[2]
            if "norm" not in type(module).__name__.lower() or weight is None:
                continue
            width = weight.numel()
            if kind in ("q_norm", "k_norm"):
                width = made.get(f"{kind[0]}_proj", width)
            total += width * (self.wide if isinstance(module, nn.LayerNorm) else 4)
        return total

    # -- parts of a pass -----------------------------------------------------------------------
    def count_kept_bytes(self, rows: int, tokens: int) -> int:
        kept = rows * tokens * (self.numbers * self.wide + self.norm_bytes)
        return kept + self._count_pair_bytes(rows, tokens)

    def _count_pair_bytes(self, rows: int, tokens: int) -> int:
        """What attention keeps of pairs of tokens; kernels that make no matrix of them keep a number of each token."""
        pairs = rows * self.heads * tokens**2
        is_dropped = any(getattr(self.text, name, 0) for name in ("attn_pdrop", "attention_dropout"))
        if self.attention == ATTENTION_NAME and tokens <= MAX_PLAIN_TOKENS:
            return pairs * self.wide * (3 if is_dropped else 1)
        if self.attention == "eager":
            cast = self.wide if self.wide < 4 else 0
            capped = self.wide if getattr(self.text, "attn_logit_softcapping", None) else 0
            return pairs * (4 + cast + capped)
        return pairs * 3 * 4 if is_dropped else rows * self.heads * tokens * 4

    def _count_attention_bytes(self, rows: int, tokens: int) -> int:
        pairs = rows * self.heads * tokens**2
        matrices = 0
        if self.attention == "eager":
            matrices = 10 * pairs  # as float32, in the arithmetic's dtype, and what is made of them meanwhile
        elif self.attention == ATTENTION_NAME and tokens <= MAX_PLAIN_TOKENS:
            matrices = 3 * pairs * self.wide
        return 4 * rows * tokens * self.rotated * self.wide + matrices

    def _count_moment_bytes(self, rows: int, tokens: int, *, training: bool) -> int:
        """What is there for a moment: hidden states, a weight, and the widest part's tensors or the weight's decoding.

        When attention's gradients are computed, what the layer's feed-forward part had kept is gone.
        """
        part = rows * tokens * self.widest * self.wide
        attention = self._count_attention_bytes(rows, tokens) - (4 * part if training else 0)
        widest = max((2 if training else 4) * part, attention, self.decoding)
        return 3 * rows * tokens * self.hidden * self.wide + widest + self.weight

    def _count_head_bytes(self, labels: int, *, training: bool) -> int:
        """Logits, their gradient or the parts that they are put together from, and some rows of them in float32."""
        logits = labels * self.vocabulary * self.wide
        capped = 1 if getattr(self.text, "final_logit_softcapping", None) else 0
        times = (2 if training or self.tables else 1) + capped
        # As float32: of the logits, unless they are, and for their gradient.
        copies = training + (self.wide < 4)
        chunk = min(LOGIT_ROWS, labels) * self.vocabulary * 4 * copies
        return labels * self.hidden * self.wide + max(times * logits + chunk, logits + self.head_rows)

    # -- passes --------------------------------------------------------------------------------
    def count_pass_peak_bytes(self, rows: int, tokens: int, labels: int, *, training: bool) -> int:
        """Peak of a forward pass and its loss; in training also of the backward pass and the adapters' gradients."""
        hidden = rows * tokens * self.hidden
        if not training:
            head = self._count_head_bytes(labels, training=False) + 2 * hidden * self.wide
            return max(self._count_moment_bytes(rows, tokens, training=False), head)
        casts = self.adapters * self.wide if self.wide < 4 else 0
        layer = self.count_kept_bytes(rows, tokens) + casts
        kept = self.layers * (hidden * self.wide if self.checkpointing else layer)
        again = layer if self.checkpointing else 0
        moment = self._count_moment_bytes(rows, tokens, training=True)
        head = hidden * (4 + self.wide) + self._count_head_bytes(labels, training=True)
        # The backward pass ends with the first layer, when the gradients of all adapters are there.
        first = self.layers * self.adapters * 4 + layer + moment
        return max(kept + max(head, again + moment), first)

    def count_layer_peak_bytes(self, rows: int, tokens: int) -> int:
        """Peak of a layer's forward pass, its weights apart."""
        part = max(3 * self.widest * self.wide * rows * tokens, self._count_attention_bytes(rows, tokens))
        return 2 * rows * tokens * self.hidden * self.wide + part

    def count_calibration_peak_bytes(self, rows: int, tokens: int, linears: Iterable[Any]) -> int:
        """Peak of a layer's pass forward and backward to its input while figures of its linears are gathered."""
        # Inputs and gradients of one linear as float32, the gradients squared, and a gradient of the widest part.
        wide = max((m.in_features + 2 * m.out_features for m in linears), default=0)
        return self.count_kept_bytes(rows, tokens) + rows * tokens * (4 * wide + self.widest * self.wide)
