"""Perf: how fast a connection to a peer is."""
