"""Parts of quantized modules."""
