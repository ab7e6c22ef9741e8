"""One layer's batch split by rows over the peers that host it, and one step of them all."""
