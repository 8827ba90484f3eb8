"""What the cluster asks of this node: desired state is computed, then synced."""
