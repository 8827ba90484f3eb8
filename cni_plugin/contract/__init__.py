"""The CNI contract, versions 0.1.0 to 1.1.0: requests, results, errors and the verbs.

Knows nothing of Linux. Source of every rule: the specification text of the version named
(https://www.cni.dev/docs/spec/) and, where it is silent, the visible behaviour of the
reference library.
"""
