"""The parts of `gpu.py`, each a module with `rows(options)`."""
