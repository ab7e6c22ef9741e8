"""Where a node that offers capacity is needed: which layers or experts of a run it hosts."""
