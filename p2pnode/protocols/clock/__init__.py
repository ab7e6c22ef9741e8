"""What time it is at other peers, to find out that this machine's clock is wrong."""
