"""Services: what a node does instead of kube-proxy."""
