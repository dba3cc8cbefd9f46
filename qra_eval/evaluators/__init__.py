"""The evaluators: real tuning, landscapes, recorded trials."""
