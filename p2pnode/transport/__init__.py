"""Byte streams between addresses."""
