"""One folder per network protocol."""
