"""From what a user types after `--device` to a device.

`name` or `FILE.json` is a surrogate; `scheme:rest`, or `scheme` alone (`host`), goes to whatever is registered as
`scheme` in the entry-point group `hetrl.devices`: a callable `(rest, graph, engine) -> Device`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from hetrl import plugins
from hetrl.device_bridge.base import Device
from hetrl.device_bridge.spec import builtin_names
from hetrl.errors import UnknownName, UsageError
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
    try:
        return opener(rest, graph, engine)
    except UnknownName as error:
        if error.kind != "device":
            raise
        known = [*builtin_names(), *(name for name in plugins.names(GROUP) if name != DEFAULT_SCHEME)]
        raise UnknownName("device", address, known, "hetrl devices") from None
