"""How nodes are joined: what the kernel holds for other nodes, and the VXLAN device that leads there."""
