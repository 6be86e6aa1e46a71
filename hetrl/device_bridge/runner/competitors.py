"""Load beside inference: n processes that want a core each, all the time, at normal priority."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from types import TracebackType

from hetrl.device_bridge.runner.helpers import begin_helper, end_helper, start_helper


class Competitors:
    """Busy processes for the time of a `with`; returns from its start once all of them are at work."""

    def __init__(self, count: int, cores: Sequence[int]) -> None:
        self._count = count
        self._cores = cores
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(process.pid for process in self._processes)

    def __enter__(self) -> Competitors:
        try:
            for _ in range(self._count):
                self._processes.append(start_helper("competitors", (), self._cores))
            for process in self._processes:
                assert process.stdout is not None
                if not process.stdout.readline():
                    raise RuntimeError("a competing process ended at its start")
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        for process in self._processes:
            end_helper(process)
        self._processes = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def main() -> None:
    begin_helper()
    print("busy", flush=True)
    while True:
        pass
