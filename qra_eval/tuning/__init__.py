"""Training under a plan: rows, the loop, the shared adapter, the final tuning."""
