"""A network's configuration as checked values."""
