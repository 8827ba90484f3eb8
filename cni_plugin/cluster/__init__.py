"""What Kubernetes says: the API, watches on its objects, and the operator's settings.

`podwire cluster` is a process of its own, which the agent keeps alive: the official client and its
libraries stay out of the process that answers calls. It watches Nodes (watch, by way of api),
computes what this node must hold (desired, pure), writes the configuration and the peers file, and has the
one sync make the kernel equal to them (follow).
"""
