"""Backends of whole-number zero points: what GPTQModel, vLLM and transformers with GPTQ store."""
