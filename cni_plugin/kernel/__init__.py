"""One module per kernel object: the only code that speaks netlink, writes sysctls or runs nft.

`ensure_` makes it so and verifies what it found, `add_` must be new, `delete_` accepts
absence, `list_` and `get_` read. Every change is named by the `ip` command that does the
same: that is what the debug log shows and how an error begins.
"""
