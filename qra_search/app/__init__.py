"""What a person uses: commands, runs and their folders, comparisons and reports; the optimizer knows nothing of it."""
