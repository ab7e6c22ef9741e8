"""Bytes to values and back: pure functions and value types, no input or output."""
