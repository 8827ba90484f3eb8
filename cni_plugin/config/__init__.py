"""A network's configuration as values: read once, checked, and no raw JSON after it."""
