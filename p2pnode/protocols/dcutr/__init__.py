"""DCUtR: two peers that met over a relay punch through their NATs and connect directly."""
