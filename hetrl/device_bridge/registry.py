"""From what a user types after `--device` to a device.

`name` or `FILE.json` is a surrogate; `scheme:rest`, or `scheme` alone (`host`), goes to whatever is registered as
`scheme` in the entry-point group `hetrl.devices`: a callable `(rest, graph, engine) -> Device`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from hetrl import plugins
from hetrl.device_bridge.base import Device
from hetrl.errors import UsageError
from hetrl.graph import OperatorGraph

GROUP = "hetrl.devices"
DEFAULT_SCHEME = "surrogate"
Opener = Callable[[str, OperatorGraph, str | None], Device]


def open_device(address: str, graph: OperatorGraph, engine: str | None = None) -> Device:
    """Open a device with a model loaded.

    :raises UnknownName: no device, device file, scheme or engine of that name.
    :raises SpecError: a device file that is malformed.
    :raises DeviceFailed: the device does not answer.
    """
    if not address:
        raise UsageError("no device is named", "`hetrl devices` lists them")
    scheme, _, rest = address.partition(":")
    if scheme not in plugins.names(GROUP):
        scheme, rest = DEFAULT_SCHEME, address
    opener = cast(Opener, plugins.load(GROUP, scheme, "device", "hetrl devices"))
    return opener(rest, graph, engine)
