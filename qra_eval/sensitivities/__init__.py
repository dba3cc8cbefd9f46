"""How sensitive the groups are: measured once, and kept."""
