"""The address manager: which attachment holds which address, on which terms.

`ranges` is arithmetic, `store` the locked directory in the reference `host-local`'s own format,
`allocator` the policy that joins them. `cache` (with `index` and `watch`) saves a long-lived process
the search, `notes` holds the small files of optional behaviours (`sticky`, `cooldown`).
`boot_mark` tells what is of an earlier boot, `namespace_mark` where a holder was attached, `fsck`
checks the files, `transfer` is many reservations at once, `rebuild` makes a directory that is gone.
It imports nothing of the plugin and knows nothing of CNI or interfaces. `seam`, which every change
passes, lies here because both packages may import it.
"""
