"""The loop of a search, and what it found."""
