"""Runs a job's pieces: who waits for whom, on which cores, in which arrays."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hetrl.device_bridge.runner.engines.base import Array, Engine, Session
from hetrl.device_bridge.runner.job import Job, Piece, Port

_CACHE_LINE = 64


@dataclass(frozen=True)
class Span:
    """One piece's work, since the run began; `copy_ms` of it went into slices that are not contiguous."""

    piece: int
    start_ms: float
    end_ms: float
    copy_ms: float


@dataclass
class _Step:
    """A piece that is loaded.

    :param before: pairs of a destination and a source to copy before it runs; `behind` likewise.
    :param waits: locks that pieces on other threads release for it; `wakes` those that it releases.
    """

    number: int
    piece: Piece
    session: Session
    before: list[tuple[Array, Array]]
    behind: list[tuple[Array, Array]]
    waits: list[threading.Lock] = field(default_factory=list)
    wakes: list[threading.Lock] = field(default_factory=list)


class Executor:
    """A loaded job.

    Every tensor has one array that lives as long as this. Pieces that share their cores run in one thread, in the job's
    order: the calling one where all do, else a thread for each set of cores. A thread is pinned before it loads, so
    that the threads that an engine starts are as well.

    :param engines: by name, all that the job's pieces need.
    """

    def __init__(self, job: Job, folder: Path, engines: Mapping[str, Engine]) -> None:
        self._job = job
        self._arrays = {tensor.name: _array(tensor.shape, tensor.dtype) for tensor in job.tensors}
        self.outputs: Mapping[str, Array] = {name: self._arrays[name] for name in job.outputs}
        self._spans: list[Span | None] = [None] * len(job.pieces)
        self._began = 0.0
        self._error: BaseException | None = None
        self._workers: list[_Worker] = []
        self._own: list[_Step] = []
        self._own_cores: tuple[int, ...] = ()

        def load(number: int) -> _Step:
            piece = job.pieces[number]
            reads, before = self._bound(piece.reads)
            writes, behind = self._bound(piece.writes)
            session = engines[piece.engine].load(piece, folder, reads, writes)
            return _Step(number, piece, session, before, [(whole, part) for part, whole in behind])

        by_place: dict[tuple[tuple[int, ...], int | None], list[int]] = {}
        for number, piece in enumerate(job.pieces):
            by_place.setdefault((piece.cores, piece.device), []).append(number)
        try:
            if len(by_place) == 1:
                self._own_cores = job.pieces[0].cores
                with _pinned(self._own_cores):
                    self._own.extend(map(load, range(len(job.pieces))))
            else:
                for (cores, _), numbers in by_place.items():
                    self._workers.append(_Worker(cores, numbers, load, self._run_steps))
                for worker in self._workers:
                    worker.wait_until_loaded()
                _connect([worker.steps for worker in self._workers])
        except BaseException:
            self.close()
            raise

    def run(self, inputs: Mapping[str, Array]) -> None:
        """One inference; `outputs` are overwritten by the next one.

        :param inputs: by name, shaped as the job says.
        :raises Exception: whatever an engine raised.
        """
        self._began = time.perf_counter()
        for name in self._job.inputs:
            np.copyto(self._arrays[name], inputs[name], casting="no")
        if not self._workers:
            with _pinned(self._own_cores):
                self._run_steps(self._own)
        for worker in self._workers:
            worker.begin()
        for worker in self._workers:
            worker.wait_until_done()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    @property
    def timeline(self) -> Sequence[Span]:
        """Of the last run, one span for each piece that ran, in the job's order."""
        return [span for span in self._spans if span is not None]

    def close(self) -> None:
        """Free threads and sessions; may be called twice."""
        for worker in self._workers:
            worker.end()
        for step in [*self._own, *(step for worker in self._workers for step in worker.steps)]:
            step.session.close()
        self._own, self._workers = [], []

    def _bound(self, ports: Sequence[Port]) -> tuple[list[Array], list[tuple[Array, Array]]]:
        """Arrays to bind, and what to copy into them (destination, source) where they are not the tensor itself."""
        bound, copies = [], []
        for port in ports:
            view = _view(self._arrays[port.tensor], port)
            if view.flags.c_contiguous:
                bound.append(view)
            else:
                bound.append(_array(view.shape, view.dtype.name))
                copies.append((bound[-1], view))
        return bound, copies

    def _run_steps(self, steps: Sequence[_Step]) -> None:
        """Where a piece failed the others are left out, but nobody is left waiting."""
        for step in steps:
            for lock in step.waits:
                lock.acquire()
            if self._error is None:
                try:
                    self._run_step(step)
                except BaseException as error:
                    self._error = error
            for lock in step.wakes:
                lock.release()

    def _run_step(self, step: _Step) -> None:
        start = time.perf_counter()
        for destination, source in step.before:
            np.copyto(destination, source)
        copied = time.perf_counter()
        step.session.run()
        computed = time.perf_counter()
        for destination, source in step.behind:
            np.copyto(destination, source)
        end = time.perf_counter()
        copy_ms = (copied - start + end - computed) * 1e3
        self._spans[step.number] = Span(step.number, (start - self._began) * 1e3, (end - self._began) * 1e3, copy_ms)
        if step.piece.duty < 1:
            time.sleep((end - start) * (1 / step.piece.duty - 1))


class _Worker:
    """A thread on some cores, with the pieces that run there."""

    def __init__(
        self,
        cores: tuple[int, ...],
        numbers: Sequence[int],
        load: Callable[[int], _Step],
        run: Callable[[Sequence[_Step]], None],
    ) -> None:
        self.steps: list[_Step] = []
        self._begin, self._done = _held_lock(), _held_lock()
        self._ending = False
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._live, args=(cores, numbers, load, run), daemon=True)
        self._thread.start()

    def wait_until_loaded(self) -> None:
        self._done.acquire()
        if self._failed is not None:
            raise self._failed

    def begin(self) -> None:
        self._begin.release()

    def wait_until_done(self) -> None:
        self._done.acquire()

    def end(self) -> None:
        """Let the thread end, once."""
        if self._failed is None and not self._ending:
            self._ending = True
            self._begin.release()
        self._thread.join()

    def _live(
        self,
        cores: tuple[int, ...],
        numbers: Sequence[int],
        load: Callable[[int], _Step],
        run: Callable[[Sequence[_Step]], None],
    ) -> None:
        try:
            with _pinned(cores):
                self.steps.extend(map(load, numbers))
                self._done.release()
                self._begin.acquire()
                while not self._ending:
                    run(self.steps)
                    self._done.release()
                    self._begin.acquire()
        except BaseException as error:
            self._failed = error
            self._done.release()


def _connect(threads: Sequence[Sequence[_Step]]) -> None:
    """A lock for each pair of pieces on different threads of which one waits for the other.

    Of several that a thread waits for on one other thread, the last is enough, and what it has waited for once is over.
    """
    place = {
        step.number: (index, order, step) for index, steps in enumerate(threads) for order, step in enumerate(steps)
    }
    for index, steps in enumerate(threads):
        awaited: dict[int, int] = {}
        for step in steps:
            last: dict[int, int] = {}
            for number in step.piece.after:
                other, order, _ = place[number]
                if other != index and order > max(awaited.get(other, -1), last.get(other, -1)):
                    last[other] = order
            for other, order in last.items():
                lock = _held_lock()
                step.waits.append(lock)
                threads[other][order].wakes.append(lock)
            awaited |= last


def _held_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@contextmanager
def _pinned(cores: tuple[int, ...]) -> Iterator[None]:
    """Keep the calling thread on these cores meanwhile, and no longer: what it starts later inherits where it runs."""
    allowed = os.sched_getaffinity(0)
    if not cores or set(cores) >= allowed:
        yield
        return
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _array(shape: tuple[int, ...], dtype: str) -> Array:
    """Zeros that begin at a cache line, as runtimes like it."""
    kind = np.dtype(dtype)
    size = kind.itemsize * int(np.prod(shape, dtype=np.int64))
    raw = np.zeros(size + _CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % _CACHE_LINE
    return raw[start : start + size].view(kind).reshape(shape)


def _view(array: Array, port: Port) -> Array:
    if port.axis is None:
        return array
    return array[(slice(None),) * port.axis + (slice(port.start, port.stop),)]
