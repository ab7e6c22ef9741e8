"""What a node finds out about itself: whether and where others reach it, and how its NAT behaves."""
