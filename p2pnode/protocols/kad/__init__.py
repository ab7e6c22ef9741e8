"""The Kademlia DHT."""
