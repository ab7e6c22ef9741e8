"""Scenarios that run the real node code under virtual time."""
