"""The run folder: `config.json`, `trials.jsonl`, `plan.json`, `result.json`, `learning_curve.csv`, `agent/`.

`model.onnx` is the compressed model, where the plan has one that accuracy was measured on.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import msgspec

from hetrl.agents.base import Kind
from hetrl.agents.trials import Trial
from hetrl.errors import RunError
from hetrl.objective import Objective
from hetrl.plan import encode_plan
from hetrl.results import Result
from hetrl.scoring.measured_drops import Evaluation

TRIALS = "trials.jsonl"
CONFIG = "config.json"
PLAN = "plan.json"
RESULT = "result.json"
CURVE = "learning_curve.csv"
WEIGHTS = "agent"
COMPRESSED = "model.onnx"


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run was asked for, with every default resolved; enough to start it again.

    :param method: the agent or the sampler, as `kind` says, with all its `settings` by name.
    """

    schema: str = "hetrl.config/1"
    model: str
    input_shapes: dict[str, tuple[int, ...]]
    seeded_weights: int | None = None
    device: str
    engine: str
    condition: str
    objective: Objective
    evaluation: Evaluation | None = None
    kind: Kind
    method: str
    settings: dict[str, Any]
    budget: int
    seed: int
    seeds: bool
    hetrl: str


class RunFolder:
    """Writes a run; every file but the trial log is replaced as a whole, so that none is ever half written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def create(path: Path) -> RunFolder:
        """A new folder.

        :raises RunError: it holds a run already, or cannot be made.
        """
        if (path / TRIALS).exists() or (path / CONFIG).exists():
            raise RunError(f"{path} holds a run already", f"continue it with --resume {path}, or give another --out")
        try:
            path.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=path):
                pass  # a folder that nothing can be written into is found out now
        except OSError as error:
            raise RunError(f"{path} cannot be written into ({error.strerror})", "give another --out") from None
        return RunFolder(path)

    @staticmethod
    def open(path: Path) -> RunFolder:
        """The folder of an earlier run.

        :raises RunError: it holds none.
        """
        if not (path / CONFIG).is_file():
            raise RunError(f"{path} holds no run to resume", "--out DIR starts one")
        return RunFolder(path)

    @property
    def trials(self) -> Path:
        return self.path / TRIALS

    def write_config(self, config: Config) -> None:
        self._replace(CONFIG, pretty(config))

    def read_config(self) -> Config:
        """
        :raises RunError: the file is damaged.
        """
        try:
            return msgspec.json.decode((self.path / CONFIG).read_bytes(), type=Config)
        except (OSError, msgspec.MsgspecError) as error:
            raise RunError(f"{self.path / CONFIG} is damaged ({error})", "start the run anew") from None

    def write_result(self, result: Result, curve: Sequence[tuple[Trial, float]]) -> None:
        """The plan, the result and the learning curve.

        :param curve: each trial with the best cost so far, in ms (inf before any plan kept the budgets).
        """
        self._replace(PLAN, encode_plan(result.plan))
        self._replace(RESULT, pretty(result))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["evaluation", "by", "latency_ms", "best_latency_ms"])
        for trial, best in curve:
            latency = "" if trial.latency_ms is None else f"{trial.latency_ms:.6g}"
            writer.writerow([trial.n + 1, trial.by, latency, f"{best:.6g}"])
        self._replace(CURVE, text.getvalue().encode())

    @property
    def compressed_model(self) -> Path:
        return self.path / COMPRESSED

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS

    def _replace(self, name: str, data: bytes) -> None:
        temporary = self.path / f".{name}.tmp"
        temporary.write_bytes(data)
        os.replace(temporary, self.path / name)


def pretty(value: object) -> bytes:
    """JSON for people."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"
