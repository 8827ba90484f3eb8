"""What is on this node, read in one place: configured networks, attachments, who is alive."""
