"""Layers whose batches are split over their swarm, as torch modules."""
