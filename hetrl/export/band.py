"""Band: a model fixed to one worker, and a profile that says how long it takes on each of them.

The configuration is the one of its benchmark tool (mrsnu/band, README.md and script/config_samples/benchmark_heft.json;
read in band/tool/engine_runner.cc). With `fixed_worker`, a model runs on the worker that it names, whole. The profile
(band/latency_estimator.cc) holds times in microseconds by model and by subgraph, one for each worker; the model is one
subgraph here, `0`. Band ignores a profile whose hash is not that of the workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import xor
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from hetrl.device_bridge.spec import DeviceSpec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.export.base import Carries, Check, Exporter, Order, unit_of
from hetrl.export.bundle import Bundle, Refused
from hetrl.export.expected import condition_of, engine_set
from hetrl.export.mace import net_name
from hetrl.export.texts import read_json, threads, write_json
from hetrl.graph import OperatorGraph
from hetrl.plan import Part, Plan, Segment

CONFIG, PROFILE = "band.json", "profile.json"
FOLDER = "/data/local/tmp"  # of models, profile and log on the phone, as Band's own samples have it
SUBGRAPH = "0"  # the only one of a model that nothing cuts
Device = Literal["CPU", "GPU", "DSP", "NPU"]
Mask = Literal["ALL", "LITTLE", "BIG", "PRIMARY"]
_DEVICES: dict[str, Device] = {"cpu": "CPU", "gpu": "GPU", "dsp": "DSP", "npu": "NPU"}
_FLAGS = tuple(_DEVICES.values())  # in the order of Band's `DeviceFlag`
_MASKS: tuple[Mask, ...] = ("ALL", "LITTLE", "BIG", "PRIMARY")  # in the order of its `CPUMaskFlag`


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model that is asked for every `period_ms`; `worker_id` counts from 0, in the order of the workers."""

    graph: str
    period_ms: int
    batch_size: int = 1
    worker_id: int | UnsetType = UNSET


class Worker(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A processor that takes work; `num_threads` matters to CPUs."""

    device: Device
    num_threads: int
    cpu_masks: Mask


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Band's own keys; those that a fixed worker makes no use of have its defaults."""

    models: tuple[Model, ...]
    log_path: str
    schedulers: tuple[str, ...]
    minimum_subgraph_size: int
    subgraph_preparation_type: str
    execution_mode: str
    cpu_masks: Mask
    num_threads: int
    planner_cpu_masks: Mask
    workers: tuple[Worker, ...]
    running_time_ms: int
    profile_smoothing_factor: float
    profile_data_path: str
    profile_online: bool
    profile_warmup_runs: int
    profile_num_runs: int
    allow_work_steal: bool
    availability_check_interval_ms: int
    schedule_window_size: int


Times = dict[str, tuple[int | None, ...]]  # microseconds for each worker, by subgraph; None where it cannot run


class Band(Exporter):
    """See the module."""

    name = "band"
    summary = "Band's JSON: the whole model on a fixed worker, with a latency profile"
    carries = Carries(units=frozenset(_DEVICES), one_processor=True, compression=False)
    needs_weights = False
    engines = frozenset({"tflite"})  # which Band is built on

    def write(self, order: Order, folder: Path) -> None:
        names = _processors(order)
        workers = tuple(_worker(name, order.spec) for name in names)
        graph = f"{FOLDER}/{net_name(order.plan.model.name)}.tflite"
        write_json(folder / CONFIG, _config(graph, workers, names.index(order.plan.processors[0]), order.spec))
        if order.spec is not None:
            times = tuple(_microseconds(order.plan, order.graph, order.spec, name) for name in names)
            write_json(folder / PROFILE, {"hash": profile_hash(workers), graph: {SUBGRAPH: times}})

    def readme(self, order: Order) -> str:
        files = f"`{CONFIG}`" if order.spec is None else f"`{CONFIG}`, `{PROFILE}`"
        return (
            f"{files} and the model as a .tflite file, in its worker's precision, go to `{FOLDER}` on the phone:\n\n"
            f"    adb shell {FOLDER}/band_benchmark {FOLDER}/{CONFIG}\n"
        )

    def notes(self, order: Order) -> tuple[str, ...]:
        return ("The device is not known here, so Band profiles it itself",) if order.spec is None else ()

    def text_checks(self, bundle: Bundle) -> Iterator[Check]:
        config, processor = read_json(bundle, CONFIG, Config), bundle.manifest.plan.processors[0]
        if len(config.models) != 1 or not isinstance(config.models[0].worker_id, int):
            raise Refused(f"{CONFIG} is not for one model on a fixed worker", "export the plan again")
        model, number = config.models[0], config.models[0].worker_id
        device = config.workers[number].device if 0 <= number < len(config.workers) else "nowhere"
        fixed = config.schedulers == ("fixed_worker",) and device == _DEVICES[unit_of(processor)]
        yield Check("placement", fixed, f"{model.graph} is fixed to {device}, the plan is on {processor}")
        if config.profile_online:
            yield Check("profile", None, "none: Band makes it on the phone")
            return
        profile = read_json(bundle, PROFILE, dict[str, int | Times])
        times = profile.get(model.graph)
        held = times[SUBGRAPH] if isinstance(times, dict) and times.keys() == {SUBGRAPH} else ()
        same = profile.get("hash") == profile_hash(config.workers) and len(held) == len(config.workers)
        known = same and held[number] is not None
        yield Check(
            "profile", known, f"{len(held)} times for {len(config.workers)} workers, hash {profile.get('hash')}"
        )


def profile_hash(workers: tuple[Worker, ...]) -> int:
    """Band's hash of its workers: without the right one a profile is not read (`GetProfileHash`)."""
    numbers = [(_FLAGS.index(w.device), w.num_threads, _MASKS.index(w.cpu_masks)) for w in workers]
    return reduce(xor, (part for numbered in numbers for part in numbered), len(workers))


def _processors(order: Order) -> tuple[str, ...]:
    """One for each worker: the engine set's, or where it is not known, a CPU and the plan's own."""
    own = order.plan.processors[0]
    if order.spec is not None:
        there = order.spec.engine(engine_set(order.plan, order.spec)).processors
        return tuple(p.id for p in there if unit_of(p.id) in _DEVICES)
    return (own,) if unit_of(own) == "cpu" else ("/".join(("cpu", *own.split("/")[1:])), own)


def _worker(processor: str, spec: DeviceSpec | None) -> Worker:
    unit = unit_of(processor)
    count = threads(spec, (processor,)) if unit == "cpu" else 1
    return Worker(device=_DEVICES[unit], num_threads=count, cpu_masks="ALL")


def _config(graph: str, workers: tuple[Worker, ...], fixed: int, spec: DeviceSpec | None) -> Config:
    return Config(
        models=(Model(graph=graph, period_ms=0, worker_id=fixed),),
        log_path=f"{FOLDER}/log.json",
        schedulers=("fixed_worker",),
        minimum_subgraph_size=7,
        subgraph_preparation_type="no_fallback_subgraph",
        execution_mode="stream",
        cpu_masks="ALL",
        num_threads=max(worker.num_threads for worker in workers),
        planner_cpu_masks="PRIMARY",
        workers=workers,
        running_time_ms=10_000,
        profile_smoothing_factor=0.1,
        profile_data_path=f"{FOLDER}/{PROFILE}",
        profile_online=spec is None,
        profile_warmup_runs=3,
        profile_num_runs=50,
        allow_work_steal=False,
        availability_check_interval_ms=30_000,
        schedule_window_size=10,
    )


def _microseconds(plan: Plan, graph: OperatorGraph, spec: DeviceSpec, processor: str) -> int | None:
    """What the whole model takes on a processor, as predicted, in its best memory; None if it cannot run there."""
    device = SurrogateDevice(spec, graph, engine_set(plan, spec))
    nodes = tuple(node for group in graph.groups for node in graph.group_node_ids(group.index))
    found = []
    for memory in next(p.memory for p in device.engine.processors if p.id == processor) or (None,):
        whole = Segment(nodes=nodes, parts=(Part(processor),), memory=memory)
        alone = Plan(model=plan.model, device=plan.device, engines=plan.engines, segments=(whole,))
        found.append(device.measure(alone, condition_of(plan)).latency_ms)
    return min((round(1000 * latency_ms) for latency_ms in found if latency_ms is not None), default=None)


EXPORTER = Band()
