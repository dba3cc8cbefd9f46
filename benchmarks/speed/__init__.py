"""How fast things are, beside other ways to do them."""
