"""What is left of containers that are no more, found out and taken away: `podwire gc`.

`networks` says whose leavings are ours to look for, `trails` what store and kernel hold of each
attachment, `runtime` what a container runtime says, `verdicts` who is dead and what proves it, `gc` looks
twice and lets the code of the verb GC take away what both looks agree on.
"""
