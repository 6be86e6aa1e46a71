"""The state a device is in while a plan is measured: `cold`, or `cold,ui=60hz:4ms`, `cold,ui=none`."""

from __future__ import annotations

import re

import msgspec

from hetrl.errors import UnknownName, UsageError

STATES = ("cold",)
OPTIONS = ("ui",)


class Ui(msgspec.Struct, frozen=True):
    """A user interface drawn beside inference.

    :param rate_hz: frames per second that the screen wants.
    :param render_ms: GPU time of one frame.
    """

    rate_hz: float = 60.0
    render_ms: float = 4.0

    def __post_init__(self) -> None:
        if not 1 <= self.rate_hz <= 480:
            raise UsageError(f"a screen does not refresh {self.rate_hz:g} times a second", "try ui=60hz:4ms")
        if not 0 < self.render_ms < self.budget_ms:
            raise UsageError(
                f"a frame of {self.render_ms:g} ms does not fit into {self.rate_hz:g} Hz", "try ui=60hz:4ms"
            )

    @property
    def budget_ms(self) -> float:
        """Time between two frames."""
        return 1000.0 / self.rate_hz

    @property
    def slack_ms(self) -> float:
        """How long the GPU may keep a frame waiting before it is dropped."""
        return self.budget_ms - self.render_ms


class Condition(msgspec.Struct, frozen=True):
    """What surrounds a measurement.

    :param state: `cold` (clocks locked at their maximum, no competitor, cool).
    :param ui: the user interface, None for none.
    """

    state: str = "cold"
    ui: Ui | None = Ui()

    def __str__(self) -> str:
        if self.ui is None:
            return f"{self.state},ui=none"
        if self.ui == Ui():
            return self.state
        return f"{self.state},ui={self.ui.rate_hz:g}hz:{self.ui.render_ms:g}ms"


def parse_condition(text: str) -> Condition:
    """Read a condition, one state and options in any order: `cold,ui=90hz:3ms`.

    :raises UnknownName: a state or an option that does not exist.
    :raises UsageError: an option whose value makes no sense, or one that is given twice.
    """
    state: str | None = None
    ui: Ui | None = Ui()
    seen: set[str] = set()
    for word in text.split(","):
        name, equals, value = word.strip().partition("=")
        if name in seen or (not equals and state is not None and name in STATES):
            raise UsageError(f"condition {text!r} gives {name!r} twice", "give it once")
        seen.add(name)
        if not equals:
            if name not in STATES:
                raise UnknownName("condition", name, STATES, "hetrl devices")
            state = name
        elif name == "ui":
            ui = _parse_ui(value)
        else:
            raise UnknownName("condition option", name, OPTIONS, "hetrl devices")
    return Condition(state or STATES[0], ui)


def _parse_ui(value: str) -> Ui | None:
    if value == "none":
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)hz:(\d+(?:\.\d+)?)ms", value)
    if not match:
        raise UsageError(f"ui={value!r} is not a user interface", "write ui=60hz:4ms or ui=none")
    return Ui(float(match[1]), float(match[2]))
