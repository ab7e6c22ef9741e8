"""Consecutive blocks of a model as one torch module, each block on whichever host is best."""
