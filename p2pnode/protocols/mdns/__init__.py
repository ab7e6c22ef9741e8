"""mDNS: nodes on one local network find each other without being told of anyone."""
