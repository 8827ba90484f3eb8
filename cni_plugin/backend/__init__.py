"""How nodes are joined: routes to other nodes, and the VXLAN device that leads to them."""
