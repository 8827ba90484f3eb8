"""What `scripts/bench` is made of.

`works` says what is measured, `lanes` who does it and where, `calls` runs and times it, `figures` makes
rows of it, `table`, `picture` and `readme` show them. `memory` and `sandboxes` measure what is not a call.
"""
