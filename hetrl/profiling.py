"""What to measure to know a device with a model: the whole model everywhere, then plans that cut it in all ways."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from hetrl.compression import NO_COMPRESSION
from hetrl.condition import Condition
from hetrl.device_bridge.base import Device
from hetrl.device_bridge.recording import Recorder, read_recording
from hetrl.envs.enumerate import Restriction, enumerate_plans
from hetrl.envs.evaluate import require_present
from hetrl.envs.setting import Setting
from hetrl.envs.space import CONTINUE, GRANULARITIES, Granularity, PlanSpace
from hetrl.errors import UsageError
from hetrl.measurement import Failure, Measurement, pooled
from hetrl.objective import Objective
from hetrl.plan import Plan
from hetrl.plan_check import check_plan
from hetrl.progress import Progress, Silent

DEFAULT_PLANS = 40
DEFAULT_LIMIT = 2000
ANY_OUTPUT = Objective(max_output_error=1.0)  # a profile is about time, so that bf16 is timed as well
SPLIT_SHARE = 0.3  # of random runs that two processors share, where they can
RETRIED = frozenset(
    {Failure.TIMEOUT, Failure.CRASHED, Failure.LOST}
)  # such a failure may pass: a profile that goes on tries again


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What a profile recorded.

    :param plans: distinct plans that were asked for, each of them `rounds` times.
    :param known: measurements of them that were in the file before; `measured` are new.
    :param failed: plans without numbers.
    :param covered: of all pairs of a fusion group and a processor, how many the file holds in numbers.
    :param whole_ms: processor -> latency of the whole model there, if that was asked for; None where it failed.
    """

    file: str
    device: str
    model: str
    engine: str
    condition: str
    plans: int
    rounds: int
    known: int
    measured: int
    failed: int
    groups: int
    covered: int
    pairs: int
    whole_ms: dict[str, float | None]
    best_ms: float | None
    interrupted: bool = False
    notes: tuple[str, ...] = ()


def profile(
    setting: Setting,
    file: Path,
    *,
    plans: int = DEFAULT_PLANS,
    rounds: int = 1,
    seed: int = 0,
    within: Restriction | None = None,
    limit: int = DEFAULT_LIMIT,
    progress: Progress | None = None,
) -> Profile:
    """Record a model on a device. What the file holds already is not measured again. Ctrl-C keeps what is there.

    :param plans: random plans besides the whole model on each processor.
    :param rounds: how often each plan is measured, with all others in between.
    :param within: every plan of this part of the plan space instead, if they are at most `limit`.
    :raises UsageError: they are more; or numbers out of range.
    :raises RunError: the file holds something else.
    :raises DeviceFailed: the device went away; what was measured is in the file.
    """
    if plans < 0 or limit < 1:
        raise UsageError(f"{min(plans, limit)} plans tell nothing", "give --plans 40")
    if rounds < 1:
        raise UsageError(f"{rounds} rounds measure nothing", "give --rounds 1 or more")
    space, rng = setting.space, np.random.default_rng(seed)
    whole = whole_plans(space)
    wanted = list(whole.values())
    if within is None:
        wanted += random_plans(space, plans, rng, {plan.key for plan in wanted})
    else:
        wanted = list(enumerate_plans(space, limit, within))
    # In an order drawn anew for each round: what makes the device slow for a while hits no part of the space.
    turns = [[wanted[i] for i in rng.permutation(len(wanted))] for _ in range(rounds)]
    if within is None:
        turns[0] = wanted
    with Recorder(setting.device, file) as recorder:
        return _record(recorder, setting, file, turns, whole, progress or Silent())


def _record(
    recorder: Device,
    setting: Setting,
    file: Path,
    turns: Sequence[Sequence[Plan]],
    whole: Mapping[str, Plan],
    progress: Progress,
) -> Profile:
    condition, wanted = setting.condition, turns[0]
    keys = {plan.key for plan in wanted}
    answers = {key: found for key, found in _answers(file, condition).items() if key in keys}
    ahead = [plan for turn, plans in enumerate(turns) for plan in plans if len(answers.get(plan.key, ())) <= turn]
    before = sum(min(len(found), len(turns)) for found in answers.values())
    measured, interrupted = 0, False
    progress.start(len(ahead), f"{setting.graph.name} on {setting.planner.spec.id}, {before} measurements known")
    try:
        for number, plan in enumerate(ahead, 1):
            if not _refused(answers.get(plan.key, ())):
                answer = recorder.measure(plan, condition)
                require_present(answer, recorder)
                answers.setdefault(plan.key, []).append(answer)
                measured += 1
            progress.update(number, min(_best_ms(answers), default=None))
    except KeyboardInterrupt:
        interrupted = True
    finally:
        progress.stop()
    pool = {key: pooled(found) for key, found in answers.items()}
    placed = [
        (group, processor)
        for plan in wanted
        if plan.key in pool and pool[plan.key].ok
        for group, processor in _placed(plan, setting)
    ]
    processors = [p.id for p in setting.planner.engine.processors]
    return Profile(
        file=str(file),
        device=setting.planner.spec.id,
        model=setting.graph.name,
        engine=setting.planner.engine_name,
        condition=str(condition),
        plans=len(keys),
        rounds=len(turns),
        known=before,
        measured=measured,
        failed=sum(not answer.ok for answer in pool.values()),
        groups=setting.space.groups,
        covered=len(set(placed)),
        pairs=setting.space.groups * len(processors),
        whole_ms={
            name: pool[plan.key].latency_ms if plan.key in pool else None
            for name, plan in whole.items()
            if plan.key in keys
        },
        best_ms=min((m.latency_ms for m in pool.values() if m.latency_ms is not None), default=None),
        interrupted=interrupted,
        notes=recorder.notes,
    )


def whole_plans(space: PlanSpace) -> dict[str, Plan]:
    """The plan that gives everything to one processor, for each that takes all groups, by its id."""
    found = {}
    for option, processor in enumerate(space.engine.processors):
        if space.possible_at(NO_COMPRESSION)[:, option].all():
            codes = np.full(space.groups, CONTINUE)
            codes[0] = 1 + option
            found[processor.id] = _plan(space, codes)
    return found


def random_plans(space: PlanSpace, count: int, rng: np.random.Generator, known: Collection[str] = ()) -> list[Plan]:
    """So many distinct plans whose keys are not known, or fewer where they are hard to find.

    Each plan draws how long its runs are: from one fusion group to the whole model, evenly on the logarithm. A run goes
    to the processor that its first group was on least so far, so that every group is soon timed on every processor;
    some are split.
    """
    found: dict[str, Plan] = {}
    times = np.zeros((space.groups, len(space.engine.processors)))  # how often each group was put on each processor
    for _ in range(20 * count):
        if len(found) == count:
            break
        length = np.exp(rng.uniform(0, np.log(max(2, space.groups))))
        codes = _runs(space, float(length), times, rng)
        plan = _plan(space, codes)
        if plan.key not in known:
            found.setdefault(plan.key, plan)
    return list(found.values())


def _runs(
    space: PlanSpace, length: float, times: npt.NDArray[np.float64], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """(groups,) decisions of one plan with runs of about `length` groups; counts them in `times`."""
    codes = np.zeros(space.groups, dtype=np.int64)
    granularity, unpruned = np.array([GRANULARITIES.index(Granularity.INTRA_OP)]), np.array([0])
    option, since, left = 0, 0, 0
    for group in range(space.groups):
        legal = space.group_mask(group, granularity, unpruned, np.array([option]), np.array([since]))[:, 0]
        if left > 0 and legal[CONTINUE]:
            codes[group], since = CONTINUE, since + 1
        elif legal[1:].any():
            option, since = _chosen(space, legal[1:], times[group], rng), 1
            codes[group], left = 1 + option, 1 + int(rng.geometric(1 / length))
        else:
            codes[group], since = CONTINUE, since + 1
        left -= 1
        if space.single[option]:
            times[group, option] += 1
    return codes


def _chosen(
    space: PlanSpace, legal: npt.NDArray[np.bool_], times: npt.NDArray[np.float64], rng: np.random.Generator
) -> int:
    """A split now and then, else the processor that was least used, by lot among equals."""
    alone, split = np.flatnonzero(legal & space.single), np.flatnonzero(legal & ~space.single)
    if len(split) and (not len(alone) or rng.random() < SPLIT_SHARE):
        return int(rng.choice(split))
    least = alone[times[alone] == times[alone].min()]
    return int(rng.choice(least))


def _plan(space: PlanSpace, codes: npt.NDArray[np.int64]) -> Plan:
    """The plan of the groups' decisions, with the first choice of all else."""
    taken = np.zeros(space.length, dtype=np.int64)
    taken[0] = GRANULARITIES.index(Granularity.INTRA_OP)
    taken[len(space.globals) :] = codes
    return space.plan(taken)


def _placed(plan: Plan, setting: Setting) -> Iterator[tuple[int, str]]:
    """Which fusion groups a plan puts on one processor."""
    for segment, groups in zip(plan.segments, check_plan(plan, setting.graph), strict=True):
        if len(segment.parts) == 1:
            yield from ((group, segment.processors[0]) for group in groups)


def _answers(file: Path, condition: Condition) -> dict[str, list[Measurement]]:
    """What a file holds of one condition, by plan; failures that may pass are left out."""
    found: dict[str, list[Measurement]] = {}
    for record in read_recording(file)[1]:
        if record.condition == str(condition) and not _passing(record.measurement):
            found.setdefault(record.plan.key, []).append(record.measurement)
    return found


def _passing(measured: Measurement) -> bool:
    return measured.error is not None and measured.error.kind in RETRIED


def _refused(answers: Sequence[Measurement]) -> bool:
    """Whether a plan failed for good."""
    return any(not answer.ok and not _passing(answer) for answer in answers)


def _best_ms(answers: Mapping[str, Sequence[Measurement]]) -> Iterator[float]:
    """The best of each plan's numbers so far."""
    for found in answers.values():
        times = [m.latency_ms for m in found if m.latency_ms is not None]
        if times:
            yield min(times)
