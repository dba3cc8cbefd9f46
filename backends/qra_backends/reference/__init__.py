"""Reference backends in plain torch: group-wise codes, and codes by error feedback."""
