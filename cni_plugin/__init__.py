"""podwire's CNI plugin: joins pods to a network.

The rooms, from the top: `__main__` and `cli` (the process), `plugins` (the verbs of each
plugin type), `delegate` and `addresses` (whose addresses), `attach` (how a pod is joined),
`kernel` (one module per kernel object), and below all of them `contract` and `config`.
Imports point down only; tests/unit/test_house.py holds them to it.
"""

__version__ = "0.1.0"
