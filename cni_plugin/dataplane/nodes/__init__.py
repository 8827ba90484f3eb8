"""The other nodes: this node's network configuration and its peers."""
