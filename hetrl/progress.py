"""How long-running calls tell how far they are."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What `tune` calls; the command line draws a bar."""

    def start(self, total: int, label: str) -> None:
        """`total` evaluations lie ahead."""

    def update(self, done: int, best_ms: float | None) -> None:
        """`done` of them are over; `best_ms` is the best plan's latency so far, inside the budgets."""

    def note(self, sentence: str) -> None:
        """Something that a user should know of now, such as a device that has become slower."""

    def stop(self) -> None:
        """The search is over, however it ended."""


class Silent:
    """Says nothing."""

    def start(self, total: int, label: str) -> None: ...

    def update(self, done: int, best_ms: float | None) -> None: ...

    def note(self, sentence: str) -> None: ...

    def stop(self) -> None: ...
