"""`train-layerwise`: a network whose layers are trained by a swarm each."""
