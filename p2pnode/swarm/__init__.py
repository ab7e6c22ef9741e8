"""The peers of one layer: how experts are announced, found and searched."""
