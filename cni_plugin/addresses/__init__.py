"""Where a pod's addresses come from: our address manager, a foreign IPAM plugin, or the configuration."""
