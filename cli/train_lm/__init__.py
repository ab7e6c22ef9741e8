"""`train-lm`: a language model trained through the blocks that others host."""
