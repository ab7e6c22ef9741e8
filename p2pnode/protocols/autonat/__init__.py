"""AutoNAT: whether others can dial this node, found out with their help (libp2p/specs, autonat)."""
