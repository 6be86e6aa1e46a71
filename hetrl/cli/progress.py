"""How far a search is, on stderr: a bar on a terminal, a line for every tenth elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID

    from hetrl.progress import Progress


def say(sentence: str) -> None:
    """A line on stderr."""
    print(sentence, file=sys.stderr, flush=True)


def progress(quiet: bool) -> Progress:
    """What to hand to `tune`."""
    from hetrl.progress import Silent

    if quiet:
        return Silent()
    return Bar() if sys.stderr.isatty() else Lines()


class Bar:
    """A rich progress bar."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("best {task.fields[best]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None

    def start(self, total: int, label: str) -> None:
        if self._task is None:
            self._task = self._bar.add_task(label, total=total, best=_milliseconds(None))
        else:
            self._bar.update(self._task, total=total, description=label)
        self._bar.start()

    def update(self, done: int, best_ms: float | None) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=done, best=_milliseconds(best_ms))

    def note(self, sentence: str) -> None:
        self._bar.console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        self._bar.stop()


class Lines:
    """One plain line at the start, for every tenth of the way, and at the end."""

    def __init__(self) -> None:
        self._total = 1
        self._label = ""
        self._done = 0
        self._said = 0
        self._best_ms: float | None = None
        self._began = time.monotonic()

    def start(self, total: int, label: str) -> None:
        self._total, self._label, self._done, self._said = max(1, total), label, 0, 0
        self._began = time.monotonic()
        self._say(f"{total} evaluations ahead")

    def update(self, done: int, best_ms: float | None) -> None:
        self._done, self._best_ms = done, best_ms
        if 10 * done // self._total > 10 * self._said // self._total:
            self._tell()

    def note(self, sentence: str) -> None:
        self._say(sentence)

    def stop(self) -> None:
        if self._done > self._said:
            self._tell()

    def _tell(self) -> None:
        self._said = self._done
        elapsed = time.monotonic() - self._began
        left = elapsed * max(0, self._total - self._done) / self._done
        self._say(
            f"{self._done}/{self._total} evaluations, best {_milliseconds(self._best_ms)}, "
            f"{elapsed:.0f} s, at most {left:.0f} s left"
        )

    def _say(self, line: str) -> None:
        print(f"{self._label}: {line}", file=sys.stderr, flush=True)


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} ms"
