"""The evaluators: real tuning, landscapes."""
