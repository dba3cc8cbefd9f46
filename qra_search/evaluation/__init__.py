"""What is known of a plan: the evaluator, its results, and the sensitivities."""
