"""Options behind a policy's name: `mace_gpu_image:slice_ms=1,queue_window=4`.

They are what MACE's model files call `limit_opencl_kernel_time` (kernels that take longer than 1 ms are cut into parts;
here the limit is a number, of milliseconds) and `opencl_queue_window_size` (the host waits when so many kernels are in
the queue), for a screen that stays responsive at a cost in latency. Both are about a GPU's OpenCL queue. MACE's CPU has
none, and its DSP gets the whole network in one call of hexagon-nn, so neither takes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hetrl.errors import UnknownName, UsageError
from hetrl.plan import QUEUE_WINDOW_RANGE, SLICE_MS_RANGE

NAMES = ("slice_ms", "queue_window")


@dataclass(frozen=True)
class KernelOptions:
    """How a GPU's kernels are queued; None leaves a plan as it is.

    :param slice_ms: longest kernel.
    :param queue_window: kernels that may wait in the queue.
    """

    slice_ms: float | None = None
    queue_window: int | None = None


def parse_options(text: str, policy: str) -> KernelOptions:
    """Read `slice_ms=1,queue_window=4`.

    :raises UsageError: an unknown option, one that is given twice, a value that no plan may have.
    """
    given: dict[str, str] = {}
    for item in text.split(","):
        name, equals, value = item.partition("=")
        if name not in NAMES:
            raise UnknownName(f"option of {policy}", name, NAMES, "hetrl policies")
        if name in given:
            raise UsageError(f"{policy} has {name} twice", "give it once")
        if not (equals and value):
            raise UsageError(f"{policy} has {name} without a value", f"write {policy}:slice_ms=1,queue_window=16")
        given[name] = value
    window = _number(given, "queue_window", int, QUEUE_WINDOW_RANGE, "a whole number")
    return KernelOptions(
        slice_ms=_number(given, "slice_ms", float, SLICE_MS_RANGE, "a number of milliseconds"),
        queue_window=None if window is None else int(window),
    )


def _number(
    given: Mapping[str, str], name: str, read: Callable[[str], float], limits: tuple[float, float], what: str
) -> float | None:
    if name not in given:
        return None
    low, high = limits
    try:
        value = read(given[name])
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise UsageError(f"{name}={given[name]} is not {what} from {low:g} to {high:g}", f"write for example {name}=4")
    return value
