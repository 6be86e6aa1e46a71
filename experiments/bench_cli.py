"""How long the light commands take, against importing what they are built on.

    python experiments/bench_cli.py [--repeats 15]

Prints the median wall time of each command and its ratio to `python -c "import numpy, msgspec, rich, typer"`. All are
run in turn, round after round, so that a busy machine slows them alike.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hetrl.plan import ModelRef, Part, Plan, Segment, encode_plan

BASELINE = "import numpy, msgspec, rich, typer"
LIMIT = 2.0


def example_plan() -> Plan:
    """A plan of 60 segments, as of a network of medium size."""
    segments = tuple(Segment(nodes=(f"n{i}",), parts=(Part("cpu/mace/fp32"),)) for i in range(60))
    return Plan(model=ModelRef("example", "0" * 64), device="d1", engines=("mace",), segments=segments)


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.json"
        plan.write_bytes(encode_plan(example_plan()))
        light = ("--help", "--version", "devices", "models", "policies", f"plan show {plan}")
        commands = {"baseline": [sys.executable, "-c", BASELINE]}
        for words in light:
            commands[words.split("/")[0].strip()] = [sys.executable, "-m", "hetrl.cli.main", *words.split()]
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(repeats + 1):
            for name, command in commands.items():
                times[name].append(seconds(command))
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}  # the first round fills caches
    for name, median in medians.items():
        ratio = median / medians["baseline"]
        print(f"{name:<12} {1000 * median:7.1f} ms   {ratio:5.2f} x baseline{'' if ratio < LIMIT else '   TOO SLOW'}")


if __name__ == "__main__":
    main()
