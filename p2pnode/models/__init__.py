"""Decoder-only language models, cut into blocks that hosts serve and ends that trainers keep."""
