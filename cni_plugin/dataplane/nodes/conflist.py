"""Our conflist in net.d, to which others (istio-cni, linkerd-cni) append a plugin.

Ours are the plugin of type `podwire` and the keys that stand beside the list of plugins. Only they are
compared, as values: whoever appends writes the whole file anew, in another order of keys. When
they differ they alone are replaced, and every other plugin stays where it is, with its keys.
"""

from __future__ import annotations

import json
from typing import Any

from cni_plugin.dataplane.nodes.published_files import read_text, replace_file

_TYPE = "podwire"


def read_ours(path: str) -> str | None:
    """Return our part of the file as `render` gives it; None when there is none."""
    document = _read(path)
    place = _find(document)
    return None if place is None else render(document | {"plugins": [document["plugins"][place]]})


def render(network: dict[str, Any]) -> str:
    """Return a configuration as text."""
    return json.dumps(network, indent=4) + "\n"


def write_ours(path: str, network: str) -> bool:
    """Make our part of the file equal to `network`; tell whether it differed."""
    ours: dict[str, Any] = json.loads(network)
    found = _read(path)
    place = _find(found)
    if place is None:
        return replace_file(path, network)
    plugins = list(found["plugins"])
    plugins[place : place + 1] = ours["plugins"]
    wanted = found | ours | {"plugins": plugins}
    return wanted != found and replace_file(path, render(wanted))


def _read(path: str) -> dict[str, Any]:
    """Return what is in the file, nothing when that is no configuration."""
    try:
        found = json.loads(read_text(path) or "")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _find(document: dict[str, Any]) -> int | None:
    """Return the place of our plugin among the plugins; a file without it is not ours to keep."""
    plugins = document.get("plugins")
    members = plugins if isinstance(plugins, list) else []
    places = (i for i, each in enumerate(members) if isinstance(each, dict) and each.get("type") == _TYPE)
    return next(places, None)
