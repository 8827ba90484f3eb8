"""What is on this node, read in one place: configured networks, attachments, and who is alive."""
