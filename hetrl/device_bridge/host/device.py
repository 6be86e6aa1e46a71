"""A machine with a runner as a device: every measurement really runs the plan there."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from msgspec import UNSET

from hetrl.condition import Condition
from hetrl.device_bridge.base import Device, DeviceInfo, check_fits, describe_spec
from hetrl.device_bridge.host.loaded import LoadedModel
from hetrl.device_bridge.runner.job import Job
from hetrl.device_bridge.runner.priorities import NO_CAP, Cap
from hetrl.device_bridge.runner.protocol import Report, Request, Screen
from hetrl.device_bridge.runner.sampling import Sampling
from hetrl.device_bridge.runner_client import RunnerClient
from hetrl.device_bridge.spec import DeviceSpec
from hetrl.errors import ModelError, PlanError, UsageError
from hetrl.fidelity import usual_output_error
from hetrl.graph import OperatorGraph
from hetrl.measurement import Failure, Measurement, MeasurementError, SegmentTiming, Utilization
from hetrl.partition import Target
from hetrl.partition.ncnn_layer import Unconvertible
from hetrl.plan import Evidence, Plan

FRAMES_S = 3.0  # 180 frames at 60 Hz
FRAME_WINDOW_S = 0.5  # between two windows inference waits for a frame to end
ENDLESS_REPEATS = 100_000  # frames are counted for some time, however short an inference is
QUICK = Sampling(max_warmup_s=1.0, max_warmup_runs=5, max_s=0.6, min_repeats=5, relative_width=0.04)
DUEL = Sampling(max_warmup_s=1.0, max_warmup_runs=5, max_s=4.0, min_repeats=15, relative_width=0.01)


class RunnerDevice(Device):
    """One machine with one model. Its plans run as they are, and outputs are compared with the whole model's.

    Of a plan that prunes, it is the pruned model that runs, and whose outputs are compared.

    :param max_output_error: a plan whose output is further off (largest difference over largest value) has failed.
    """

    def __init__(
        self,
        spec: DeviceSpec,
        graph: OperatorGraph,
        engine_name: str,
        client: RunnerClient,
        model: LoadedModel,
        max_output_error: float | None = None,
    ) -> None:
        self.spec = spec
        self.graph = graph
        self.engine_name = engine_name
        self._client = client
        self._model = model
        self._max_output_error = usual_output_error(graph) if max_output_error is None else max_output_error
        processors = spec.engine(engine_name).processors
        self._targets = {p.id: Target(p.cores, p.number) for p in processors}

    def describe(self) -> DeviceInfo:
        return describe_spec(self.spec, self.engine_name, f"{self.spec.soc}, {self.spec.phone}", deterministic=False)

    def allowing(self, max_output_error: float | None) -> RunnerDevice:
        if max_output_error is None:
            return self
        return RunnerDevice(self.spec, self.graph, self.engine_name, self._client, self._model, max_output_error)

    @property
    def notes(self) -> tuple[str, ...]:
        return self._client.notes

    def measure(self, plan: Plan, condition: Condition) -> Measurement:
        return self._run([plan], condition, QUICK)[0]

    def interleaves(self, condition: Condition) -> bool:
        return condition.ui is None  # frames are counted for one plan at a time

    def compare(self, plans: Sequence[Plan], condition: Condition) -> list[Measurement]:
        return self._run(plans, condition, DUEL)

    def _run(self, plans: Sequence[Plan], condition: Condition, sampling: Sampling) -> list[Measurement]:
        request = self._request(condition, sampling)
        found: list[Measurement | None] = []
        asked: list[tuple[Job, Request]] = []
        for plan in plans:
            check_fits(plan, self)
            job = self._job(plan)
            found.append(job if isinstance(job, Measurement) else None)
            asked += [] if isinstance(job, Measurement) else [(job, replace(request, cap=_cap(plan)))]
        answers = iter(self._answers(asked))
        return [known if known is not None else next(answers) for known in found]

    def _job(self, plan: Plan) -> Job | Measurement:
        try:
            return self._model.job(plan, self._targets)
        except (PlanError, ModelError, Unconvertible) as error:  # fits the model, but cannot be run, or compressed
            return Measurement.failed(Failure.UNSUPPORTED, str(error))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return Measurement.failed(Failure.NO_SPACE, f"the plan's files do not fit on this disk ({error.strerror})")

    def _answers(self, asked: Sequence[tuple[Job, Request]]) -> list[Measurement]:
        """Interleaved if they can be; what fails does so alone, and the rest is interleaved without it."""
        if len(asked) < 2 or len({request for _, request in asked}) > 1 or asked[0][1].screen is not None:
            return [self._answer(job, request) for job, request in asked]
        together = self._together(asked)
        if together is not None:
            return together
        answers = [self._answer(job, replace(request, sampling=QUICK)) for job, request in asked]
        sound = [number for number, answer in enumerate(answers) if answer.ok]
        again = self._together([asked[number] for number in sound]) if len(sound) > 1 else None
        for number, answer in zip(sound, again or (), strict=False):
            answers[number] = answer
        return answers

    def _together(self, asked: Sequence[tuple[Job, Request]]) -> list[Measurement] | None:
        jobs = [job for job, _ in asked]
        reports = self._client.compare(jobs, asked[0][1])
        if isinstance(reports, MeasurementError):
            lost = reports.kind is Failure.LOST  # then nobody is there to ask one by one
            return [Measurement.of_error(reports) for _ in jobs] if lost else None
        return [self._measurement(job, report) for job, report in zip(jobs, reports, strict=True)]

    def _answer(self, job: Job, request: Request) -> Measurement:
        report = self._client.measure(job, request)
        if isinstance(report, MeasurementError):
            return Measurement.of_error(report)
        return self._measurement(job, report)

    def _request(self, condition: Condition, sampling: Sampling) -> Request:
        if condition.state != "cold" or condition.cache_hit is not None or condition.suspended is not None:
            raise UsageError(
                f"{self.spec.id} cannot be put into the condition {condition}",
                "a real device takes competitors=N and ui=RATEhz:WORKms",
            )
        screen = None
        if condition.ui is not None:
            screen = Screen(rate_hz=condition.ui.rate_hz, work_ms=condition.ui.render_ms)
            sampling = replace(
                sampling,
                min_s=FRAMES_S,
                max_s=max(FRAMES_S, sampling.max_s),
                max_repeats=ENDLESS_REPEATS,
                window_s=FRAME_WINDOW_S,
            )
        return Request(
            inputs=self._model.inputs,
            max_output_error=self._max_output_error,
            sampling=sampling,
            competitors=condition.competitors,
            screen=screen,
        )

    def _measurement(self, job: Job, report: Report) -> Measurement:
        spans = sorted(report.timeline, key=lambda span: job.pieces[span.piece].segment)
        segments = []
        for number, parts in groupby(spans, key=lambda span: job.pieces[span.piece].segment):
            mine = list(parts)
            units = tuple(dict.fromkeys(job.pieces[span.piece].processor for span in mine))
            begin, end = min(s.start_ms for s in mine), max(s.end_ms for s in mine)
            segments.append(SegmentTiming(f"s{number}", units, begin, end, sum(s.copy_ms for s in mine)))
        busy: dict[str, float] = {}
        for span in spans:
            processor = job.pieces[span.piece].processor
            busy[processor] = busy.get(processor, 0.0) + span.end_ms - span.start_ms
        frames = report.frames
        return Measurement(
            evidence=Evidence.MEASURED,
            latency_ms=report.latency_ms,
            latency_interval_ms=report.interval_ms,
            samples_ms=report.samples_ms,
            peak_memory_mb=report.peak_memory_mb,
            frame_drop_rate=None if frames is None else frames.rate,
            output_error=report.output_error,
            foreign_load=report.foreign_load,
            utilization=tuple(Utilization(name, min(1.0, ms / report.latency_ms)) for name, ms in busy.items()),
            segments=tuple(segments),
        )

    def close(self) -> None:
        self._client.close()


def _cap(plan: Plan) -> Cap:
    """What the runner's scheduler does about it; duty cycles are in the job."""
    if plan.process_cap is UNSET:
        return NO_CAP
    return Cap(idle=plan.process_cap.idle_priority, quota_cpus=plan.process_cap.quota_cpus)
