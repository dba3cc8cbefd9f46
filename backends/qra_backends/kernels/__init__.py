"""Kernels for a GPU, written in Triton, that more than one backend uses; each has a plain way that gives the same."""
