"""Trellis codes: weights of a column as a path, near the limit of what so many bits can say (QTIP, arXiv 2406.11235)."""
