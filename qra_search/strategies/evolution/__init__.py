"""Parts of the evolutionary strategies."""
