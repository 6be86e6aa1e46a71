"""What one check found."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class State(StrEnum):
    OK = "ok"
    MISSING = "missing"  # not there
    BROKEN = "broken"  # there, and does not work


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `hetrl doctor`.

    :param detail: what was seen.
    :param hint: what to type next; empty where nothing has to be done.
    :param needed: whether nothing works without it.
    """

    check: str
    state: State
    detail: str
    hint: str = ""
    needed: bool = False

    @property
    def fatal(self) -> bool:
        return self.needed and self.state is not State.OK


def ok(check: str, detail: str, *, needed: bool = False) -> Finding:
    return Finding(check=check, state=State.OK, detail=detail, needed=needed)


def missing(check: str, detail: str, hint: str = "", *, needed: bool = False) -> Finding:
    return Finding(check=check, state=State.MISSING, detail=detail, hint=hint, needed=needed)


def broken(check: str, detail: str, hint: str = "", *, needed: bool = False) -> Finding:
    return Finding(check=check, state=State.BROKEN, detail=detail, hint=hint, needed=needed)
