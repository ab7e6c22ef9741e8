"""Identify: each side tells the other its key, addresses and protocols."""
