"""All-reduce of tensors within an explicit group of peers: sums, means and robust means."""
