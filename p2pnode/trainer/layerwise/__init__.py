"""Networks trained layer by layer: a swarm for each, gradients handed from swarm to swarm."""
