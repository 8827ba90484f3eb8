"""`podwire doctor`: what is wrong on this node, what it means to pods, which command repairs it."""
