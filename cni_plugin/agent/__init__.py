"""The agent: one long-lived process that runs the verbs for all pods of a node.

A shim hands a call over; `wire` is the format between the two, `server` accepts connections, `calls`
runs one call, `run_lock` lets one call compute at a time, `journal` keeps the calls' log lines apart,
`handover` passes the sockets on to the next agent, `presence` says that there is one, `systemd` talks to a
service manager. docs/wire.md, docs/agent.md.

`metrics` are the counters, `pools` those of the store, `exposition` their text for Prometheus, `readiness`
says why the node can take no pods, `endpoints` is the HTTP server. docs/monitoring.md.
"""
