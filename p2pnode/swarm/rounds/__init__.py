"""Training in rounds: the best weights of a layer's swarm, or their average, checked by each."""
