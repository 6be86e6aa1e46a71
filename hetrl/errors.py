"""Everything hetrl raises on purpose.

    HetrlError                 a user's mistake or a request that cannot be met; `hint` is the next thing to type
    |-- UsageError             a bad option value (unknown name, absurd number)
    |   `-- UnknownName        a name that is not in a list, with the nearest one
    |-- ModelError             the ONNX file cannot be read, or is no valid graph
    |   `-- UnresolvedShape    a symbolic dimension that nothing resolves
    |-- PlanError              a plan that is malformed, or does not fit its model or device
    |-- SpecError              a device file that is malformed or implausible
    |-- RunError               a run folder that cannot be used
    |-- Infeasible             a valid request that no plan fulfils
    |-- MissingExtra           an optional dependency is not installed
    `-- DeviceFailed           the device could not be opened at all

A failed *measurement* is no exception: it is a `Measurement` with `error` set.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

FEW_NAMES = 6  # so many names fit into an error's line


class HetrlError(Exception):
    """Base of all errors that are shown to a user as one line.

    :param message: what is wrong, one sentence.
    :param hint: the next command or value to try.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class UsageError(HetrlError):
    """An option has a value that makes no sense."""


class UnknownName(UsageError):
    """A name is not among the known ones.

    :param kind: what the name should name ("device").
    :param name: what was given.
    :param known: the names that exist.
    :param command: the command that lists them.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], command: str) -> None:
        known = sorted(known)
        near = get_close_matches(name.lower(), [k.lower() for k in known], n=1, cutoff=0.5)
        match = next((k for k in known if near and k.lower() == near[0]), None)
        if match:
            hint = f"did you mean {match!r}?"
        else:
            hint = f"known: {', '.join(known)}" if len(known) <= FEW_NAMES else f"`{command}` lists them"
        super().__init__(f"unknown {kind} {name!r}", hint)
        self.kind = kind
        self.name = name
        self.suggestion = match


class ModelError(HetrlError):
    """The model cannot be read, or is no valid graph."""


class UnresolvedShape(ModelError):
    """A tensor's shape stays symbolic."""


class PlanError(HetrlError):
    """A plan is malformed, or belongs to another model or device.

    :param field: the path of the offending field, `segments[2].parts`.
    """

    def __init__(self, field: str, message: str, hint: str | None = None) -> None:
        super().__init__(f"{field}: {message}", hint)
        self.field = field


class SpecError(HetrlError):
    """A device file is malformed or implausible."""


class RunError(HetrlError):
    """A run folder cannot be written, or cannot be resumed."""


class Infeasible(HetrlError):
    """The request is valid, and no plan fulfils it."""

    exit_code = 1


class MissingExtra(HetrlError):
    """An optional dependency is needed.

    :param feature: what needs it.
    :param extra: the name of hetrl's extra that brings it.
    """

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the extra {extra!r}", f"pip install 'hetrl[{extra}]'")
        self.extra = extra


class DeviceFailed(HetrlError):
    """A device cannot be opened."""

    exit_code = 3
