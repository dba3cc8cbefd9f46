"""Runs in our own formats in other libraries: what is stored where in a model folder, and vLLM's plug-in."""
