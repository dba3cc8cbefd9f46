"""The folder of a run: its files, and the final comparison on test data."""
