"""Virtual networks and node factories, for tests and simulations alike."""
