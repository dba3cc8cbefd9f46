"""The best plan within a budget from the sensitivities alone: their additive table, and an exact knapsack over it."""
