"""Compare search strategies: tasks x strategies x paired seeds, rows of raw data, and tables with statistics."""
