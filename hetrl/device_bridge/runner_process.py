"""One runner that is alive: requests go in, answers come out, and it never outlives its owner."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from collections import deque
from queue import Empty, SimpleQueue
from typing import IO, Any

import msgspec

from hetrl.measurement import MeasurementError

MAX_LINE = 1 << 26  # bytes; no answer is longer
TAIL_LINES = 8
SHOWN = 200  # characters of a line that goes into a message
END_S = 5.0  # for a process to be gone once its output is closed
SIGNAL_STATUS = 128  # a shell's exit status for a command that died of signal n is 128 + n


class Died(Exception):
    """The runner ended without an answer.

    :param status: its exit status, negative for a signal; None when it closed its output and lived on.
    :param tail: its last words on stderr.
    """

    def __init__(self, status: int | None, tail: str) -> None:
        super().__init__(f"exit status {status}")
        self.status = status
        self.tail = tail

    @property
    def signal(self) -> signal.Signals | None:
        """What killed it, if a signal did."""
        number = -(self.status or 0) if (self.status or 0) < 0 else (self.status or 0) - SIGNAL_STATUS
        try:
            return signal.Signals(number)
        except ValueError:
            return None


class Silent(Exception):
    """No answer in time."""


class Malformed(Exception):
    """An answer that makes no sense; the message says why."""


NOTHING = msgspec.Raw()


class Answer(msgspec.Struct, frozen=True):
    """What the runner answered: `ok` or `error`."""

    id: int
    ok: msgspec.Raw = NOTHING
    error: MeasurementError | None = None
    worn: bool = False


class _Id(msgspec.Struct):
    id: int


class RunnerProcess:
    """A runner and the two threads that listen to it.

    :ivar garbage: lines on its stdout that were no answer.
    :ivar first_garbage: the first of them.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        self._process = process
        self._stdin = process.stdin.fileno()
        os.set_blocking(self._stdin, False)
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._last_id = 0
        self.garbage = 0
        self.first_garbage = ""
        self._threads = [
            threading.Thread(target=self._hear, args=(process.stdout,), daemon=True),
            threading.Thread(target=self._drain, args=(process.stderr,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def call(self, do: str, fields: dict[str, Any], timeout_s: float) -> Answer:
        """One request and its answer; afterwards the runner is still there, or one of the exceptions says otherwise.

        :raises Died, Silent, Malformed: the runner has to be killed.
        """
        self._last_id += 1
        deadline = time.monotonic() + timeout_s
        self._send(msgspec.json.encode({"id": self._last_id, "do": do, **fields}) + b"\n", deadline)
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                raise Silent from None
            if line is None:
                raise self._death()
            answer = self._parse(line)
            if answer is not None:
                return answer

    def _parse(self, line: bytes) -> Answer | None:
        try:
            ours = msgspec.json.decode(line, type=_Id).id == self._last_id
        except (msgspec.DecodeError, UnicodeDecodeError):
            ours = False
        if not ours:
            self.garbage += 1
            self.first_garbage = self.first_garbage or line.decode(errors="replace").strip()[:SHOWN]
            return None
        try:
            answer = msgspec.json.decode(line, type=Answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Malformed(str(error)) from None
        if bool(bytes(answer.ok)) != (answer.error is None):
            raise Malformed("it has to hold either `ok` or `error`")
        return answer

    def _send(self, data: bytes, deadline: float) -> None:
        """Write without waiting forever for a process that does not read."""
        rest = memoryview(data)
        while rest:
            wait = deadline - time.monotonic()
            if wait <= 0 or not select.select([], [self._stdin], [], wait)[1]:
                raise Silent
            try:
                rest = rest[os.write(self._stdin, rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._death() from None

    def _hear(self, stream: IO[bytes]) -> None:
        while line := stream.readline(MAX_LINE):
            self._lines.put(line)
        self._lines.put(None)

    def _drain(self, stream: IO[bytes]) -> None:
        while line := stream.readline(MAX_LINE):
            if words := line.decode(errors="replace").strip():
                self._tail.append(words[:SHOWN])

    def _death(self) -> Died:
        try:
            status: int | None = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            status = None
        self._threads[1].join(END_S)  # its last words
        return Died(status, " | ".join(self._tail))

    def end(self) -> None:
        """Let it end by itself, and kill it if it does not."""
        if self.alive:
            try:
                self.call("bye", {}, END_S)
                self._process.wait(END_S)
            except (Died, Silent, Malformed, subprocess.TimeoutExpired):
                pass  # it is killed below
        self.kill()

    def kill(self) -> None:
        """End it and all that it started at once; leaves no zombie and no pipe. May be called twice."""
        process = self._process
        if process.poll() is None:
            if os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.close()
        for thread, stream in zip(self._threads, (process.stdout, process.stderr), strict=True):
            thread.join(END_S)
            if not thread.is_alive():  # else somebody else holds the pipe's other end, and closing would wait for it
                stream.close()
