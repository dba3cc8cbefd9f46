"""What search strategies cost, and whether they still make the same rows."""
