"""`p2pnode demo`: a real training run on this machine, with a host that dies and comes back."""
