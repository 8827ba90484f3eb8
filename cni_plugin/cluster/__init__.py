"""What Kubernetes says: the API, watches on its objects, and the operator's settings.

`podwire cluster` is a process of its own, which the agent keeps alive: the official client and its
libraries stay out of the process that answers calls. A thread a kind
watches the objects (watch, by way of api) and keeps what is known of them (snapshot).
"""
