"""A model whose linears are quantized and adapted under any plan."""
