"""What is searched: groups of linears, plans, and their exact bytes."""
