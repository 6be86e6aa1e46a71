"""The plan: what runs where, how it is split, how far the model is compressed and how hard processors are driven.

A plan is data (`hetrl.plan/1`): frozen, validated when it is made, with one canonical JSON form. It names operators
by their first output tensor, so it can be read, moved and compared without the model.
"""

from __future__ import annotations

import hashlib
import math
import re
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from hetrl.compression import SHA256, Compression
from hetrl.errors import PlanError

SCHEMA: Literal["hetrl.plan/1"] = "hetrl.plan/1"
DEFAULT_QUEUE_WINDOW = 16  # what MACE's documentation suggests for opencl_queue_window_size
QUEUE_WINDOW_RANGE = (1, 1024)
SLICE_MS_RANGE = (0.01, 1000.0)
QUOTA_CPUS_RANGE = (0.01, 1024.0)  # Linux gives no less than 1 ms in 100
PROCESSOR_ID = re.compile(r"[a-z0-9_.-]+/[a-z0-9_.-]+/[a-z0-9_.-]+")


def _make_floats(struct: msgspec.Struct, *names: str) -> None:
    """1 becomes 1.0, and -0.0 becomes 0.0: values that compare equal are written the same."""
    for name in names:
        value = getattr(struct, name)
        if value is not None:
            msgspec.structs.force_setattr(struct, name, float(value) + 0.0)


class Axis(StrEnum):
    """How a segment is shared: along which output axis, or as branches.

    Branches are several processors' side-by-side computation of several groups, each with its share of the channels and
    without any exchange inside: what reads the segment's operands reads all of them, everything behind only what its
    own branch made, and at the end the parts are concatenated. Weights between branches are gone, so that the model is
    another one, which must be trained anew.
    """

    NONE = "none"
    HEIGHT = "height"
    OUTPUT_CHANNELS = "output_channels"
    BRANCHES = "branches"


class Memory(StrEnum):
    """OpenCL memory type of an accelerator's tensors."""

    BUFFER = "buffer"
    IMAGE = "image"


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A processor (`unit/engine/precision`) and its share of the work in percent."""

    processor: str
    share_pct: int = 100


class Segment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Operators placed as one.

    :param nodes: node ids, in execution order.
    :param parts: one part, or several whose shares sum to 100, accelerators' first, the host's last.
    :param axis: `none` exactly when there is one part.
    :param memory: memory type on the accelerator; None where no part has a choice.
    """

    nodes: tuple[str, ...]
    parts: tuple[Part, ...]
    axis: Axis = Axis.NONE
    memory: Memory | None = None

    @property
    def processors(self) -> tuple[str, ...]:
        return tuple(part.processor for part in self.parts)


class Cap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Duty cycle: `processor` works at most the fraction `duty` (0 to 1) of the time; it idles after each segment."""

    processor: str
    duty: float

    def __post_init__(self) -> None:
        _make_floats(self, "duty")


class ProcessCap(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Cap that a machine's scheduler keeps. It holds for the process that runs the plan, all of its threads together.

    :param idle_priority: a core is its only while nobody else wants it (Linux's SCHED_IDLE).
    :param quota_cpus: CPU time that it gets, in cores: 0.5 is half of one core's. None for no limit.
    """

    idle_priority: bool = False
    quota_cpus: float | None = None

    def __post_init__(self) -> None:
        quota = self.quota_cpus
        if quota is None and not self.idle_priority:
            raise PlanError("process_cap", "caps nothing", "leave it away")
        low, high = QUOTA_CPUS_RANGE
        if quota is not None and not low <= quota <= high:
            raise PlanError("process_cap.quota_cpus", f"{quota} is not in {low:g} to {high:g}")
        _make_floats(self, "quota_cpus")


class ModelRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model a plan is for; the weights' hash is None where they were not at hand."""

    name: str
    structure_sha256: str
    weights_sha256: str | None = None


class Evidence(StrEnum):
    """How a number came about: on the device, from a model fitted to it, or from any other model."""

    MEASURED = "measured"
    CALIBRATED = "calibrated"
    PREDICTED = "predicted"


class Expected(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the plan's maker saw under `condition`.

    :param bound_ms: proven lower bound on every plan that the maker's budgets and search space allowed, the plan's own
        latency if it is optimal; None where none is known.
    """

    condition: str
    latency_ms: float
    accuracy_drop_pct: float
    frame_drop_rate: float | None
    peak_memory_mb: float | None
    energy_mj: float | None
    evidence: Evidence
    bound_ms: float | None = None

    def __post_init__(self) -> None:
        if self.bound_ms is not None and not (math.isfinite(self.bound_ms) and self.bound_ms > 0):
            raise PlanError("expected.bound_ms", f"{self.bound_ms} is no bound on a latency")
        names = ("latency_ms", "accuracy_drop_pct", "frame_drop_rate", "peak_memory_mb", "energy_mj", "bound_ms")
        _make_floats(self, *names)

    @property
    def gap(self) -> float | None:
        """(latency - bound) / bound: 0 if the plan is optimal, None without a bound."""
        return None if self.bound_ms is None else (self.latency_ms - self.bound_ms) / self.bound_ms


class MadeBy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`method`: agent, hand policy or `exact`; the search that ran it and its seed, where there was one."""

    method: str
    search: str | None = None
    seed: int | None = None
    hetrl: str = ""


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """See the module's text. All invariants that need no model hold for every instance.

    :param overlap: fusion groups start as soon as their operands and their processors are free, in the plan's order,
        so that independent branches on different processors run side by side; otherwise one after the other.
    :param process_cap: of machines alone; not written into the file where there is none.
    :raises PlanError: naming the field that breaks one.
    """

    schema: Literal["hetrl.plan/1"] = SCHEMA
    model: ModelRef
    device: str
    engines: tuple[str, ...]
    segments: tuple[Segment, ...]
    compression: Compression = Compression()
    caps: tuple[Cap, ...] = ()
    process_cap: ProcessCap | UnsetType = UNSET
    queue_window: int | None = None
    kernel_slice_ms: float | None = None
    overlap: bool = False
    expected: Expected | None = None
    made_by: MadeBy | None = None

    def __post_init__(self) -> None:
        _check_model(self.model)
        if not self.device:
            raise PlanError("device", "is empty")
        if not self.engines or len(set(self.engines)) != len(self.engines):
            raise PlanError("engines", "must name at least one engine, each once")
        if not self.segments:
            raise PlanError("segments", "is empty")
        seen: dict[str, int] = {}
        for index, segment in enumerate(self.segments):
            _check_segment(segment, f"segments[{index}]", self.engines)
            for node in segment.nodes:
                if node in seen:
                    raise PlanError(
                        f"segments[{index}].nodes", f"{node!r} is already in segments[{seen[node]}]; segments overlap"
                    )
                seen[node] = index
        _check_caps(self.caps)
        low, high = QUEUE_WINDOW_RANGE
        if self.queue_window is not None and not low <= self.queue_window <= high:
            raise PlanError("queue_window", f"{self.queue_window} is not in {low} to {high}")
        shortest, longest = SLICE_MS_RANGE
        if self.kernel_slice_ms is not None and not shortest <= self.kernel_slice_ms <= longest:
            raise PlanError("kernel_slice_ms", f"{self.kernel_slice_ms} is not in {shortest:g} to {longest:g} ms")
        _make_floats(self, "kernel_slice_ms")

    @property
    def key(self) -> str:
        """sha256 of what the plan does, whoever made it, whatever was expected of it, and whatever its weights are."""
        same = msgspec.structs.replace(self, expected=None, made_by=None, compression=self.compression.shapes)
        return hashlib.sha256(encode_plan(same)).hexdigest()

    @property
    def processors(self) -> tuple[str, ...]:
        """Processors used, in order of first use."""
        return tuple(dict.fromkeys(p for segment in self.segments for p in segment.processors))

    @property
    def capped(self) -> bool:
        """Whether any cap holds it back."""
        return bool(self.caps) or self.process_cap is not UNSET

    @property
    def stretched(self) -> bool:
        """Whether it has branches, so that it is for a model whose weights are others than those at hand."""
        return any(segment.axis is Axis.BRANCHES for segment in self.segments)

    @property
    def splits(self) -> int:
        """Number of segments that several processors share."""
        return sum(len(segment.parts) > 1 for segment in self.segments)


def _check_model(model: ModelRef) -> None:
    for name, value in (("structure_sha256", model.structure_sha256), ("weights_sha256", model.weights_sha256)):
        if value is not None and not SHA256.fullmatch(value):
            raise PlanError(f"model.{name}", "is no sha256 in lower-case hex")


def _check_segment(segment: Segment, field: str, engines: tuple[str, ...]) -> None:
    if not segment.nodes:
        raise PlanError(f"{field}.nodes", "is empty")
    if not segment.parts:
        raise PlanError(f"{field}.parts", "is empty")
    for number, part in enumerate(segment.parts):
        where = f"{field}.parts[{number}]"
        if not PROCESSOR_ID.fullmatch(part.processor):
            raise PlanError(f"{where}.processor", f"{part.processor!r} is not of the form unit/engine/precision")
        if part.processor.split("/")[1] not in engines:
            raise PlanError(f"{where}.processor", f"{part.processor!r} is of no engine in {list(engines)}")
        if not 1 <= part.share_pct <= 100:
            raise PlanError(f"{where}.share_pct", f"{part.share_pct} is not in 1 to 100")
    if len(set(segment.processors)) != len(segment.parts):
        raise PlanError(f"{field}.parts", "names a processor twice")
    total = sum(part.share_pct for part in segment.parts)
    if total != 100:
        raise PlanError(f"{field}.parts", f"shares sum to {total}, not to 100")
    if (segment.axis is Axis.NONE) != (len(segment.parts) == 1):
        raise PlanError(f"{field}.axis", f"{segment.axis.value!r} does not go with {len(segment.parts)} part(s)")


def _check_caps(caps: tuple[Cap, ...]) -> None:
    names = [cap.processor for cap in caps]
    if len(set(names)) != len(names):
        raise PlanError("caps", "names a processor twice")
    for index, cap in enumerate(caps):
        if not (math.isfinite(cap.duty) and 0.01 <= cap.duty <= 1):
            raise PlanError(f"caps[{index}].duty", f"{cap.duty} is not in 0.01 to 1")


def encode_plan(plan: Plan) -> bytes:
    """The canonical bytes: same plan, same bytes."""
    return msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n"


def decode_plan(data: bytes, source: str = "plan") -> Plan:
    """Read a plan; nothing in it is ever executed.

    :raises PlanError: malformed JSON, unknown or missing fields, a broken invariant.
    """
    if not data.strip():
        raise PlanError(source, "is empty", "`hetrl train` writes a plan")
    try:
        return msgspec.json.decode(data, type=Plan)
    except PlanError:
        raise
    except msgspec.ValidationError as error:
        raise _plan_error(error, source) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlanError(source, f"is no JSON ({error})", "`hetrl train` writes a plan") from None


def _plan_error(error: msgspec.ValidationError, source: str) -> PlanError:
    if isinstance(error.__cause__, PlanError):  # raised while an instance was made
        return error.__cause__
    message, _, path = str(error).partition(" - at `$")
    where = path.rstrip("`").lstrip(".")
    if where == "schema" and "hetrl.bundle/" in message:
        return PlanError(source, "is a bundle's manifest, not a plan", "`hetrl validate` takes the bundle's folder")
    return PlanError(where or source, message[:1].lower() + message[1:])


def load_plan(path: str | Path) -> Plan:
    """Read a plan file.

    :raises PlanError: see `decode_plan`; also a file that cannot be read.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except IsADirectoryError:
        inside = path / "plan.json"
        hint = f"give {inside}" if inside.is_file() else "`hetrl train` writes plans"
        raise PlanError(str(path), "is a folder, not a plan", hint) from None
    except OSError as error:
        raise PlanError(str(path), f"cannot be read ({error.strerror})", "`hetrl train` writes one") from None
    return decode_plan(data, str(path))


def json_schema() -> dict[str, Any]:
    """JSON Schema of `hetrl.plan/1`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": SCHEMA,
        **msgspec.json.schema(Plan),
    }
