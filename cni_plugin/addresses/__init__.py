"""Whose addresses a pod gets: ours in process, those of a foreign plugin, or what the configuration names."""
