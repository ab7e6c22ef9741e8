"""Circuit relay v2: being reached through others, and carrying connections for them."""
