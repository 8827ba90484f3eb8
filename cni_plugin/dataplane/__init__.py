"""What the cluster asks of this node: computed from what `cluster` has read, and made so."""
