"""`python -m hetrl.device_bridge.runner FOLDER`: requests on stdin, answers on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
from pathlib import Path
from queue import SimpleQueue

from hetrl.device_bridge.runner.engines import find_engine
from hetrl.device_bridge.runner.executor import Executor
from hetrl.device_bridge.runner.job import Job
from hetrl.device_bridge.runner.server import Executable, Loader, Server

POLL_S = 0.5  # how soon a runner sees that its parent is gone
GRACE_S = 1.0  # for a runner to end by itself


def load_executor(job: Job, folder: Path) -> Executable:
    """The real thing; an engine's library is imported here, when a job needs it."""
    return Executor(job, folder, {name: find_engine(name) for name in {piece.engine for piece in job.pieces}})


def main(load: Loader = load_executor) -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m hetrl.device_bridge.runner FOLDER")
    answers = _take_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started it, who then closes stdin
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    lines: SimpleQueue[bytes | None] = SimpleQueue()
    threading.Thread(target=_listen, args=(lines, os.getppid()), daemon=True).start()
    server = Server(Path(sys.argv[1]), load)
    while (line := lines.get()) is not None:
        request = json.loads(line)
        if request.get("do") == "bye":
            _write(answers, {"id": request.get("id"), "ok": {}})
            break
        _write(answers, server.answer(request))
    sys.stderr.flush()
    os._exit(0)  # engines' threads and destructors have nothing to say any more


def _take_stdout() -> int:
    """Keep the real stdout for answers; what engines print goes to stderr."""
    answers = os.dup(1)
    os.dup2(2, 1)
    return answers


def _write(descriptor: int, answer: object) -> None:
    rest = memoryview(json.dumps(answer, allow_nan=False).encode() + b"\n")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _listen(lines: SimpleQueue[bytes | None], parent: int) -> None:
    """Pass on requests; end the process soon after its stdin or its parent does, whatever it is busy with."""
    begun = b""
    while True:
        if select.select([0], [], [], POLL_S)[0]:
            chunk = os.read(0, 1 << 20)
            if not chunk:
                break
            *whole, begun = (begun + chunk).split(b"\n")
            for line in whole:
                lines.put(line)
        if os.getppid() != parent:
            break
    lines.put(None)
    threading.Event().wait(GRACE_S)
    os._exit(0)


if __name__ == "__main__":
    main()
