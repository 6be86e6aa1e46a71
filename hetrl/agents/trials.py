"""`trials.jsonl`: one line per evaluation, appended as it ends; resume, reports and replays read it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from hetrl.compression import Compression
from hetrl.errors import PlanError, RunError
from hetrl.json_lines import open_to_append, whole_lines
from hetrl.measurement import Measurement
from hetrl.plan import Plan

SCHEMA = "hetrl.trials/2"


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """First line: what all trials of the file are about. `length` and `width` are the plan space's.

    :param accuracy: hash of what accuracy was measured with, empty where it was predicted.
    """

    schema: str = SCHEMA
    model_sha256: str
    device: str
    spec_sha256: str
    engine: str
    condition: str
    compressions: tuple[Compression, ...]
    length: int
    width: int
    accuracy: str = ""


class Trial(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One evaluation.

    :param n: 0, 1, 2, ... in the order of evaluation.
    :param by: who proposed the plan.
    :param key: equal for equal plans.
    :param decisions: canonical decisions of the plan space; `plan` where the space does not hold the plan.
    :param segments_ms: how long each segment of `decisions` took.
    :param output_error: how far the output was off (largest difference over largest value), also where that was the
        error; None where the plan was not really run.
    :param error: why there are no numbers.
    """

    n: int
    by: str
    key: str
    accuracy_drop_pct: float
    latency_ms: float | None = None
    frame_drop_rate: float | None = None
    peak_memory_mb: float | None = None
    energy_mj: float | None = None
    decisions: tuple[int, ...] | None = None
    segments_ms: tuple[float, ...] = ()
    plan: Plan | None = None
    output_error: float | None = None
    error: str | None = None

    @staticmethod
    def of(
        n: int,
        by: str,
        outcome: Sequence[float],
        *,
        key: str,
        decisions: tuple[int, ...] | None = None,
        segments_ms: tuple[float, ...] = (),
        plan: Plan | None = None,
        measured: Measurement | None = None,
    ) -> Trial:
        """A trial from an outcome in the order of `Outcomes`' numbers, NaN where there is none.

        :param measured: what a device said, None of a surrogate's batch.
        """
        latency, accuracy, frames, memory, energy = (None if math.isnan(v) else v for v in outcome)
        reason = "the measurement failed" if latency is None else None
        if measured is not None and measured.error is not None:
            reason = f"{measured.error.kind.value}: {measured.error.message}"
        return Trial(
            n=n,
            by=by,
            key=key,
            latency_ms=latency,
            accuracy_drop_pct=accuracy or 0.0,
            frame_drop_rate=frames,
            peak_memory_mb=memory,
            energy_mj=energy,
            decisions=decisions,
            segments_ms=segments_ms,
            plan=plan,
            output_error=None if measured is None else measured.off_by,
            error=reason,
        )

    @property
    def outcome(self) -> tuple[float, ...]:
        """Numbers in the order of `Outcomes`' numbers."""
        numbers = (self.latency_ms, self.accuracy_drop_pct, self.frame_drop_rate, self.peak_memory_mb, self.energy_mj)
        return tuple(math.nan if v is None else v for v in numbers)

    def numbered(self, n: int) -> Trial:
        return self if self.n == n else msgspec.structs.replace(self, n=n)


class TrialLog:
    """Appends trials to a file; each line reaches the operating system before the next evaluation starts."""

    def __init__(self, path: Path, header: Header, *, append: bool) -> None:
        self._encoder = msgspec.json.Encoder()
        self._file = open_to_append(path, "wait for it, or give another --out")
        if not append:
            self._file.write(self._encoder.encode(header) + b"\n")

    def append(self, trial: Trial) -> None:
        self._file.write(self._encoder.encode(trial) + b"\n")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> TrialLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_trials(path: Path) -> tuple[Header, list[Trial]]:
    """The header and all complete trials of a file.

    :raises RunError: it cannot be read, or a complete line is no trial.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror})", "give the folder of an earlier run") from None
    lines = whole_lines(data)
    if not lines:
        raise RunError(f"{path} holds no finished evaluation", "start the run anew without --resume")
    try:
        header = msgspec.json.decode(lines[0], type=Header)
        decoder = msgspec.json.Decoder(Trial)
        return header, [decoder.decode(line) for line in lines[1:]]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, PlanError) as error:
        if b'"hetrl.trials/' in lines[0] and f'"{SCHEMA}"'.encode() not in lines[0]:
            raise RunError(f"{path} is of another version of hetrl", "start the run anew without --resume") from None
        raise RunError(f"{path} is damaged ({error})", "start the run anew without --resume") from None
