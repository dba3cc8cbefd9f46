"""Backends of formats that other libraries define: bitsandbytes and compressed-tensors."""
