"""What a plan is worth: the real quantized-LoRA evaluator and cheap surrogates."""
