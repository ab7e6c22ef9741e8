"""Inference sessions: a host keeps the keys and values of a sequence while it grows."""
