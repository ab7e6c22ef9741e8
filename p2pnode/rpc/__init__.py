"""Authenticated tensor calls between a trainer and a host."""
