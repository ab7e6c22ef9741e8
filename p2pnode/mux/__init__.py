"""Many streams on one channel: multistream-select and Yamux."""
