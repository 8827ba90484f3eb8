"""The agent: one long-lived process that runs the verbs for all pods of a node.

`shim` is the executable and hands a call over, `wire` is what passes between the two, `server`
accepts and refuses, `calls` runs one call exactly as the executable would, `journal` keeps
every call's log lines apart, `systemd` is what a service manager is told. docs/wire.md.
`metrics` are the numbers, `pools` those of the store, `exposition` their text for Prometheus,
`readiness` why no pod can be had, `endpoints` who serves them over HTTP. docs/monitoring.md.
"""
