"""The state a device is in while a plan is measured, in one grammar: `cold`, `sigma2,competitors=2,ui=90hz:3ms`.

A state, then options in any order. States: `cold` (clocks locked, no competitor, cool) and the study's conditions
`sigma0` (nothing else runs, 30 degrees C), `sigma1` (60 degrees), `sigma2` (70 degrees), `sigma3` (competitors take
the cache), `sigma4` (half of the operators suspended to the CPU). Options: `competitors=N` processes, `cache_hit=H`
and `suspended=S` (fractions), `ui=RATEhz:RENDERms` or `ui=none`.
"""

from __future__ import annotations

import re

import msgspec

from hetrl.errors import UnknownName, UsageError

STATES = ("cold", "sigma0", "sigma1", "sigma2", "sigma3", "sigma4")
OPTIONS = ("competitors", "cache_hit", "suspended", "ui")
MAX_COMPETITORS = 16
STUDY_CACHE_HIT = 0.2  # sigma3's hit rate
STUDY_SUSPENDED = 0.5  # sigma4's share of operators


class Ui(msgspec.Struct, frozen=True):
    """A user interface drawn beside inference.

    :param rate_hz: frames per second that the screen wants.
    :param render_ms: GPU time of one frame; CPU time on machines, where the interface draws on the CPU.
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

    :param competitors: processes that want all processors too.
    :param cache_hit: cache hit rate (0 to 1) that competitors leave; None where nobody disturbs the cache.
    :param suspended: share (0 to 1) of accelerated operators that are sent to the CPU.
    :param ui: the user interface, None for none.
    """

    state: str = "cold"
    competitors: int = 0
    cache_hit: float | None = None
    suspended: float | None = None
    ui: Ui | None = Ui()

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise UnknownName("condition", self.state, STATES, "hetrl devices")
        if not 0 <= self.competitors <= MAX_COMPETITORS:
            raise UsageError(f"competitors={self.competitors} is not in 0 to {MAX_COMPETITORS}", "try competitors=2")
        for name in ("cache_hit", "suspended"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{name}={value:g} is not in 0 to 1", f"try {name}=0.5")

    @property
    def effective_cache_hit(self) -> float:
        """Cache hit rate, relative to an undisturbed cache."""
        if self.cache_hit is not None:
            return self.cache_hit
        return STUDY_CACHE_HIT if self.state == "sigma3" else 1.0

    @property
    def effective_suspended(self) -> float:
        """Share of accelerated operators that run on the CPU instead."""
        if self.suspended is not None:
            return self.suspended
        return STUDY_SUSPENDED if self.state == "sigma4" else 0.0

    def __str__(self) -> str:
        words = [self.state]
        if self.competitors:
            words.append(f"competitors={self.competitors}")
        words += [f"{n}={v:g}" for n in ("cache_hit", "suspended") if (v := getattr(self, n)) is not None]
        if self.ui is None:
            words.append("ui=none")
        elif self.ui != Ui():
            words.append(f"ui={self.ui.rate_hz:g}hz:{self.ui.render_ms:g}ms")
        return ",".join(words)


AT_REST = Condition(ui=None)  # of a computer, which shows no app


def parse_condition(text: str) -> Condition:
    """Read a condition.

    :raises UnknownName: a state or an option that does not exist.
    :raises UsageError: an option whose value makes no sense, or one that is given twice.
    """
    state: str | None = None
    given: dict[str, str] = {}
    for word in text.split(","):
        name, equals, value = word.strip().partition("=")
        if not equals:
            if name not in STATES:
                raise UnknownName("condition", name, STATES, "hetrl devices")
            if state is not None:
                raise UsageError(f"condition {text!r} gives two states", "give one")
            state = name
        elif name not in OPTIONS:
            raise UnknownName("condition option", name, OPTIONS, "hetrl devices")
        elif name in given:
            raise UsageError(f"condition {text!r} gives {name!r} twice", "give it once")
        else:
            given[name] = value
    return Condition(
        state=state or STATES[0],
        competitors=_count(given.get("competitors", "0")),
        cache_hit=_fraction("cache_hit", given.get("cache_hit")),
        suspended=_fraction("suspended", given.get("suspended")),
        ui=_parse_ui(given["ui"]) if "ui" in given else Ui(),
    )


def _count(value: str) -> int:
    if not re.fullmatch(r"\d{1,4}", value):
        raise UsageError(f"competitors={value!r} is no number of processes", "try competitors=2")
    return int(value)


def _fraction(name: str, value: str | None) -> float | None:
    if value is None:
        return None
    if not re.fullmatch(r"\d(?:\.\d+)?|\.\d+", value):
        raise UsageError(f"{name}={value!r} is not in 0 to 1", f"try {name}=0.5")
    return float(value)


def _parse_ui(value: str) -> Ui | None:
    if value == "none":
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)hz:(\d+(?:\.\d+)?)ms", value)
    if not match:
        raise UsageError(f"ui={value!r} is not a user interface", "write ui=60hz:4ms or ui=none")
    return Ui(float(match[1]), float(match[2]))
