"""What a peer is checked for, by whoever has a connection to it."""
