"""How good masks are, with true masks and without."""
