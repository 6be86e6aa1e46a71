"""A run's trials as an Optuna journal, which `optuna.load_study` and optuna-dashboard read.

The samplers work in memory: asking a study on a journal writes and syncs the file once per parameter. Each finished
trial is appended here as one line instead. The journal follows `trials.jsonl`, but for seeds that no parameters
describe; a trial's user attribute `evaluation` is its number there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from optuna import Study, create_study, load_study
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from hetrl.json_lines import drop_torn_line

Entries = list[dict[str, Any]]
FILE = "optuna.journal"
CREATE_TRIAL = 4  # the number of this operation in Optuna's journals


class _Backend(JournalFileBackend):
    """Appends without a lock, since the run has locked its trial log, and without waiting for the disk: what a crash
    of the machine loses is written again from `trials.jsonl`."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._path = path

    def append_logs(self, logs: Entries) -> None:
        lines = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in logs)
        with open(self._path, "ab") as file:
            file.write(lines.encode())


class Journal:
    """Appends trials to the journal in a run's folder; what an earlier part of the run has written is kept."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / FILE
        self._name = name
        if self._path.exists():
            drop_torn_line(self._path)
        self._study = self._open()
        self._earlier = self._study.get_trials(deepcopy=False)
        self.count = 0  # trials of this run that are in the journal

    def append(self, trial: FrozenTrial) -> None:
        """The next trial. If the journal holds another one in its place, that and all after it are dropped."""
        if self.count < len(self._earlier):
            if _content(self._earlier[self.count]) == _content(trial):
                self.count += 1
                return
            self._cut()
        self._study.add_trial(trial)
        self.count += 1

    def _open(self) -> Study:
        storage = JournalStorage(_Backend(str(self._path)))
        if storage.get_all_studies():
            return load_study(study_name=None, storage=storage)
        return create_study(storage=storage, study_name=self._name)

    def _cut(self) -> None:
        """Keep the first `count` trials."""
        lines = self._path.read_bytes().splitlines(keepends=True)
        trials = [i for i, line in enumerate(lines) if json.loads(line)["op_code"] == CREATE_TRIAL]
        self._path.write_bytes(b"".join(lines[: trials[self.count]]))
        self._study, self._earlier = self._open(), []


def _content(trial: FrozenTrial) -> tuple[object, ...]:
    """What must be the same for two records of one evaluation."""
    return trial.state, trial.values, trial.params, trial.user_attrs
