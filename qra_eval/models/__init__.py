"""Models: loading them, finding their linears, and small random ones."""
