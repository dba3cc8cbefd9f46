"""Backend of whole-number zero points: what compressed-tensors, and so vLLM and transformers, store."""
