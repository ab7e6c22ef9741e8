"""What the peers of one layer's swarm tell each other, and what they think of each other."""
