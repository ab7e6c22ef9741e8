"""The machine's owner comes first: pausing, quiet hours, limits, and giving way to others."""
