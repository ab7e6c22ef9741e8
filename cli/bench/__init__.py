"""Measuring this machine and this software: figures, and ratios taken within one run."""
