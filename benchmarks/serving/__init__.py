"""Memory and speed of what serves a tuned run."""
