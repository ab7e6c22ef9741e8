"""What a node finds out about itself: who can reach it, and how its NAT behaves."""
