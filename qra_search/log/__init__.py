"""The trial log: every proposal and what became of it; the only state of a search."""
