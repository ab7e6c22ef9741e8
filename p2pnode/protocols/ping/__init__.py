"""Ping: is the peer alive, and how far away."""
