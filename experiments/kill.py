"""kill -9 at random moments of a training and of a search, each time resumed: is anything lost, or measured twice?

python experiments/kill.py                     ten moments each, MaskablePPO and TPE on resnet18 on d1
python experiments/kill.py --moments 3 --budget 200
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hetrl.agents.trials import read_trials
from hetrl.plan import load_plan

PATIENCE_S = 600.0


@dataclass(frozen=True)
class Killed:
    """One kill: complete evaluations on disk before it and after the resumption, and when it struck."""

    after_s: float
    evaluations: int
    torn_bytes: int


def start(command: Sequence[str], *more: str) -> subprocess.Popen[bytes]:
    """A `hetrl` of its own."""
    full = [sys.executable, "-m", "hetrl.cli.main", *command, "--quiet", "--json", *more]
    return subprocess.Popen(full, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for its end.

    :raises RuntimeError: it was no success.
    """
    _, stderr = process.communicate(timeout=PATIENCE_S)
    if process.returncode != 0:
        raise RuntimeError(f"hetrl ended with {process.returncode}: {stderr.decode()}")


def wait_for_lines(process: subprocess.Popen[bytes], path: Path, lines: int) -> None:
    """Until the file has so many complete lines, or the process has ended."""
    until = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < until:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.002)


def whole_lines(path: Path) -> bytes:
    """The complete lines of a file that may end in a torn one."""
    data = path.read_bytes() if path.exists() else b""
    return data[: data.rfind(b"\n") + 1]


def killed_often(command: Sequence[str], folder: Path, moments: int, seed: int) -> list[Killed]:
    """Run once undisturbed, and once killed at random moments and resumed; compare what is left on disk.

    :param command: a command line of `hetrl train` or `hetrl search`, without a folder.
    :raises AssertionError: an evaluation was lost, changed or repeated, or the plan is another one.
    """
    draw = random.Random(seed)
    undisturbed, run = folder / "undisturbed", folder / "killed"
    process = start(command, "--out", str(undisturbed))
    wait_for_lines(process, undisturbed / "trials.jsonl", 2)
    begin = time.monotonic()
    finish(process)
    lasts_s = time.monotonic() - begin
    expected = (undisturbed / "trials.jsonl").read_bytes()

    trials = run / "trials.jsonl"
    kills: list[Killed] = []
    for _ in range(moments):
        where = ("--resume", str(run)) if (run / "config.json").exists() else ("--out", str(run))
        before = whole_lines(trials)
        process = start(command, *where)
        wait_for_lines(process, trials, 1)  # the header: from here on evaluations are written
        after_s = draw.uniform(0.0, lasts_s)
        # What is done already is answered from the log at once, so that the rest would rarely be struck.
        wait_for_lines(process, trials, before.count(b"\n") + draw.choice((0, 1, 1)))
        time.sleep(after_s / moments)
        process.kill()
        process.communicate()
        data, whole = trials.read_bytes(), whole_lines(trials)
        assert whole.startswith(before), "an evaluation was lost or changed"
        kills.append(Killed(after_s / moments, max(0, whole.count(b"\n") - 1), len(data) - len(whole)))
    before = whole_lines(trials)
    finish(start(command, "--resume", str(run)))
    after = trials.read_bytes()
    assert after.startswith(before), "an evaluation was lost or changed"
    _, found = read_trials(trials)
    assert len({trial.key for trial in found}) == len(found), "measured twice"
    assert after == expected, "other evaluations than without kills"
    assert load_plan(run / "plan.json") == load_plan(undisturbed / "plan.json")
    assert (run / "plan.json").read_bytes() == (undisturbed / "plan.json").read_bytes()
    return kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=10)
    parser.add_argument("--budget", type=int, default=400)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    common = ["--device", "d1", "--model", options.model, "--budget", str(options.budget), "--no-seeds"]
    print("| command | killed after s | evaluations on disk | torn bytes |\n|---|---|---|---|")
    for command in (["train", "--agent", "maskable-ppo"], ["search", "--sampler", "tpe"]):
        with tempfile.TemporaryDirectory() as folder:
            for kill in killed_often([*command, *common], Path(folder), options.moments, options.seed):
                print(f"| {' '.join(command)} | {kill.after_s:.2f} | {kill.evaluations} | {kill.torn_bytes} |")
        print(f"| {' '.join(command)} | resumed to its end | {options.budget}, as without kills | 0 |", flush=True)


if __name__ == "__main__":
    main()
