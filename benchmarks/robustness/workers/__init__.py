"""Searches that are killed, logs that are damaged, workers that are simulated."""
