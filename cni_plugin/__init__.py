"""podwire's CNI plugin: joins pods to a network.

docs/architecture.md lists the rooms from top to bottom, docs/map.md every module. Imports go down
only; tests/unit/test_house.py checks it.
"""

__version__ = "0.1.0"
