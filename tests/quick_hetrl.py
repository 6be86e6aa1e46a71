"""`hetrl` with short measurements: `python quick_hetrl.py FOLDER FAULT ARGUMENTS`; FAULT is `-` for none."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hetrl.cli.main import run
from tests.host_help import break_runner, quick_host

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
    place, fault = Path(sys.argv[1]), sys.argv[2]
    with quick_host(place) as patch:
        if fault != "-":
            break_runner(patch, place, fault)
        status = run(sys.argv[3:])
    sys.exit(status)
