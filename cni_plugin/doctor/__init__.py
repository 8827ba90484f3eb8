"""What is wrong on this node, what it means to pods, and the command that mends it: `podwire doctor`."""
