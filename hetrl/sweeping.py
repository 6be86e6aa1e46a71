"""Comparisons of many devices and models, one process per core.

Every pair is appended to `pairs.jsonl` as it is done, so that a sweep that was stopped goes on where it was: the same
call into the same folder computes nothing twice. A pair that failed is not kept: it is tried again.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import msgspec

import hetrl
from hetrl.device_bridge.spec import load_spec
from hetrl.errors import HetrlError, ModelError, RunError, UnknownName, UsageError
from hetrl.objective import Objective
from hetrl.results import Comparison, Pair, Sweep
from hetrl.zoo.catalog import catalog
from hetrl.zoo.resolve import is_model_path

SCHEMA = "hetrl.sweep/1"
PAIRS = "pairs.jsonl"
DIED = "the process died, maybe for lack of memory"
Watch = Callable[[Pair, int, int], None]


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every pair of a sweep is compared under: the first line of its file."""

    schema: str = SCHEMA
    hetrl: str = hetrl.__version__
    engine: str | None
    condition: str
    objective: Objective
    train: bool
    agent: str
    budget: int
    seed: int


@dataclass(frozen=True)
class Job:
    device: str
    model: str
    inputs: str
    asked: Asked

    @property
    def key(self) -> tuple[str, str, str]:
        return self.device, self.model, self.inputs


def check_names(devices: Sequence[str], models: Sequence[str], engine: str | None) -> None:
    """Refuse lists that hold a wrong name before anything is computed; addresses of real devices are not tried.

    :raises HetrlError: an empty list, a name that is there twice, no device or model of that name, an engine set that
        no device has.
    """
    for kind, names in (("device", devices), ("model", models)):
        if not names or not all(names):
            raise UsageError(f"the list of {kind}s is empty", f"write it like --{kind}s a,b")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"the list of {kind}s names {twice!r} twice", "name it once")
    specs = [load_spec(device) for device in devices if ":" not in device]
    if specs and engine is not None and not any(engine in spec.engines for spec in specs):
        specs[0].engine(engine)
    known = [entry.name for entry in catalog()]
    for model in models:
        if model not in known and not is_model_path(model):
            raise UnknownName("model", model, known, "hetrl models")
        if model not in known and not Path(model).is_file():
            raise ModelError(f"{model} does not exist", "`hetrl models` lists the built-in ones")


def run_sweep(
    devices: Sequence[str], models: Sequence[str], asked: Asked, folder: Path, jobs: int, watch: Watch
) -> Sweep:
    """Compare all pairs that the folder does not hold yet. A `KeyboardInterrupt` ends it early, and keeps what is done.

    :raises RunError: the folder cannot be written, or holds another sweep.
    """
    wanted = [Job(device, model, _inputs(device, model), asked) for device in devices for model in models]
    with PairLog(folder, asked) as log:
        done = {(pair.device, pair.model, pair.inputs): pair for pair in log.earlier}
        missing = [job for job in wanted if job.key not in done]
        finished, interrupted = len(wanted) - len(missing), False
        try:
            for pair in _pairs(missing, jobs):
                if pair.error is None:
                    log.append(pair)
                done[pair.device, pair.model, pair.inputs] = pair
                finished += 1
                watch(pair, finished, len(wanted))
        except KeyboardInterrupt:
            interrupted = True
    pairs = tuple(done[job.key] for job in wanted if job.key in done)
    return Sweep(engine=asked.engine, condition=asked.condition, pairs=pairs, interrupted=interrupted)


class PairLog:
    """The file of finished pairs; `earlier` are those that it holds already.

    :raises RunError: see `run_sweep`.
    """

    def __init__(self, folder: Path, asked: Asked) -> None:
        from hetrl.json_lines import open_to_append

        path = folder / PAIRS
        self.earlier: tuple[Pair, ...] = ()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open_to_append(path, "wait for it, or give another --out")
        except OSError as error:
            raise RunError(f"{folder} cannot be written into ({error.strerror})", "give another --out") from None
        try:
            self._begin(path, asked)
        except BaseException:
            self._file.close()
            raise

    def _begin(self, path: Path, asked: Asked) -> None:
        lines = path.read_bytes().splitlines()
        if not lines:
            self._write(asked)
            return
        try:
            before = msgspec.json.decode(lines[0], type=Asked)
            self.earlier = tuple(msgspec.json.decode(line, type=Pair) for line in lines[1:])
        except (msgspec.MsgspecError, HetrlError, UnicodeDecodeError, RecursionError) as error:
            raise RunError(f"{path} is damaged ({error})", "give another --out") from None
        if before != asked:
            named = (name for name in Asked.__struct_fields__ if getattr(before, name) != getattr(asked, name))
            raise RunError(f"{path.parent} holds a sweep with another {', '.join(named)}", "give another --out")

    def append(self, pair: Pair) -> None:
        """Written at once, so that a crash loses nothing."""
        self._write(pair)

    def _write(self, value: msgspec.Struct) -> None:
        self._file.write(msgspec.json.encode(value) + b"\n")

    def __enter__(self) -> PairLog:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def compare_pair(job: Job) -> Pair:
    """One pair; whatever goes wrong is its error."""
    began = time.monotonic()
    comparison, error = None, None
    try:
        comparison = _compare(job)
    except HetrlError as mistake:
        error = str(mistake)
    except Exception as defect:  # one pair must not end the others
        error = f"internal error, {type(defect).__name__}: {defect}"
    return Pair(
        device=job.device,
        model=job.model,
        inputs=job.inputs,
        wall_s=time.monotonic() - began,
        comparison=comparison,
        error=error,
    )


def _compare(job: Job) -> Comparison:
    from hetrl.api import compare

    asked = job.asked
    found = compare(
        job.model,
        job.device,
        train=asked.train,
        agent=asked.agent,
        budget=asked.budget,
        seed=asked.seed,
        engine=asked.engine,
        condition=asked.condition,
        objective=asked.objective,
    )
    rows = tuple(msgspec.structs.replace(row, segments=(), fallbacks=()) for row in found.rows)
    return msgspec.structs.replace(found, rows=rows)


def _pairs(todo: Sequence[Job], jobs: int) -> Iterator[Pair]:
    """Pairs as they are done."""
    if jobs == 1:
        yield from map(compare_pair, todo)
        return
    queue, suspects = deque(todo), list[Job]()
    while queue:
        suspects += yield from _in_pool(queue, jobs)
    for job in suspects:  # each alone, so that the one that kills its process takes no other along
        for again in (yield from _in_pool(deque([job]), 1)):
            yield Pair(device=again.device, model=again.model, inputs=again.inputs, wall_s=0.0, error=DIED)


def _in_pool(queue: deque[Job], jobs: int) -> Generator[Pair, None, list[Job]]:
    """Pairs as they are done; returns those that were running when a process died, and leaves the rest in the queue."""
    before = set(multiprocessing.active_children())
    # Spawned, not forked: a fork of a process with threads may hang.
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_start_worker)
    running: dict[Future[Pair], Job] = {}
    try:
        while queue or running:
            while queue and len(running) < jobs:
                running[pool.submit(compare_pair, queue[0])] = queue[0]
                queue.popleft()
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                pair = future.result()
                del running[future]
                yield pair
    except BrokenProcessPool:
        return list(running.values())
    finally:
        for worker in set(multiprocessing.active_children()) - before:
            worker.terminate()
        pool.shutdown(cancel_futures=True)
    return []


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal's processes; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one process per core is enough


def _inputs(device: str, model: str) -> str:
    """Hash of what the names stand for now; an address that is no file stands for itself."""
    try:
        spec = msgspec.json.encode(load_spec(device))
    except HetrlError:
        spec = device.encode()
    path = Path(model)
    network = path.read_bytes() if path.is_file() else model.encode()
    return hashlib.sha256(spec + b"\0" + network).hexdigest()[:16]
