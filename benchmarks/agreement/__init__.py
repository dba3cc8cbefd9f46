"""Whether other tools and engines see the same numbers."""
