"""How the executor runs a job: whose arrays, which thread on which cores, who waits for whom."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from hetrl.device_bridge.runner.engines import NAMES, find_engine
from hetrl.device_bridge.runner.engines.base import Array, Engine, Session
from hetrl.device_bridge.runner.executor import Executor
from hetrl.device_bridge.runner.job import Job, Piece, Port, TensorInfo
from tests.tiny_models import save_tiny_cnn

SHAPE = (1, 4, 6)
PROCESSOR = "cpu/fake/fp32"


class FakeSession(Session):
    def __init__(self, engine: FakeEngine, piece: Piece, reads: Sequence[Array], writes: Sequence[Array]) -> None:
        self.engine, self.piece, self.reads, self.writes = engine, piece, reads, writes

    def run(self) -> None:
        self.engine.threads.append((self.piece.segment, threading.get_ident(), os.sched_getaffinity(0)))
        if self.piece.segment == self.engine.fails:
            raise RuntimeError("out of order")
        time.sleep(self.engine.work_s)
        for array in self.writes:
            array[...] = 1 + sum(float(read.reshape(-1)[0]) for read in self.reads)

    def close(self) -> None:
        self.engine.closed += 1


class FakeEngine(Engine):
    """Writes one more than the sum of its inputs' first elements, in a given time."""

    name = "fake"

    def __init__(self, work_s: float = 0.0, fails: int | None = None) -> None:
        self.work_s, self.fails, self.closed = work_s, fails, 0
        self.threads: list[tuple[int, int, set[int]]] = []
        self.bound: list[tuple[list[Array], list[Array]]] = []

    def version(self) -> str:
        return "1"

    def load(self, piece: Piece, folder: Path, inputs: Sequence[Array], outputs: Sequence[Array]) -> Session:
        assert all(array.flags.c_contiguous for array in (*inputs, *outputs))
        self.bound.append((list(inputs), list(outputs)))
        return FakeSession(self, piece, inputs, outputs)


def piece(number: int, reads: Sequence[Port], writes: Sequence[Port], **more: object) -> Piece:
    plain = {"segment": number, "processor": PROCESSOR, "files": (), "cores": (0,), **more}
    return Piece(**plain, reads=tuple(reads), writes=tuple(writes))  # type: ignore[arg-type]


def job_of(*pieces: Piece, outputs: Sequence[str] = ("y",)) -> Job:
    names = dict.fromkeys(["x", *(p.tensor for piece in pieces for p in (*piece.reads, *piece.writes)), *outputs])
    tensors = tuple(TensorInfo(name, SHAPE, "float32") for name in names)
    return Job(tensors, ("x",), tuple(outputs), pieces)


@contextmanager
def running(job: Job, engine: Engine) -> Iterator[Executor]:
    executor = Executor(job, Path(), {"fake": engine})
    try:
        yield executor
    finally:
        executor.close()


X = {"x": np.full(SHAPE, 3, np.float32)}
whole_x, whole_y = Port("in", "x"), Port("out", "y")


def test_whole_tensors_and_contiguous_slices_are_the_engine_s_own() -> None:
    engine = FakeEngine()
    halves = [Port("out", "y", 1, 0, 2), Port("out", "y", 1, 2, 4)]
    with running(job_of(*(piece(0, [whole_x], [half]) for half in halves)), engine) as executor:
        assert all(np.shares_memory(executor.outputs["y"], writes[0]) for _, writes in engine.bound)
        executor.run(X)
        assert (executor.outputs["y"] == 4).all()


def test_other_slices_are_copied_and_the_copying_is_timed() -> None:
    engine = FakeEngine()
    job = job_of(piece(0, [Port("in", "x", 2, 3, 6)], [Port("out", "y", 2, 3, 6)]))
    with running(job, engine) as executor:
        x = X["x"].copy()
        x[:, :, 3:] = 7
        executor.run({"x": x})
        assert (executor.outputs["y"][:, :, 3:] == 8).all()
        assert (executor.outputs["y"][:, :, :3] == 0).all()
        (span,) = executor.timeline
        assert 0 < span.copy_ms <= span.end_ms - span.start_ms


def test_arrays_begin_at_cache_lines() -> None:
    engine = FakeEngine()
    with running(job_of(piece(0, [whole_x], [whole_y])), engine):
        assert all(array.ctypes.data % 64 == 0 for side in engine.bound[0] for array in side)


def test_one_set_of_cores_is_the_calling_thread_which_is_pinned_only_meanwhile() -> None:
    allowed = os.sched_getaffinity(0)
    core = min(allowed)
    engine = FakeEngine()
    job = job_of(
        piece(0, [whole_x], [Port("out", "a")], cores=(core,)),
        piece(1, [Port("in", "a")], [whole_y], cores=(core,), after=(0,)),
    )
    with running(job, engine) as executor:
        executor.run(X)
        assert os.sched_getaffinity(0) == allowed
    assert [(thread, cores) for _, thread, cores in engine.threads] == [(threading.get_ident(), {core})] * 2
    assert engine.closed == 2


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_sets_of_cores_are_threads_on_them_side_by_side() -> None:
    one, other = sorted(os.sched_getaffinity(0))[:2]
    engine = FakeEngine(work_s=0.05)
    job = job_of(
        piece(0, [whole_x], [Port("out", "y", 1, 0, 2)], cores=(one,)),
        piece(0, [whole_x], [Port("out", "y", 1, 2, 4)], cores=(other,)),
    )
    with running(job, engine) as executor:
        for _ in range(3):
            executor.run(X)
        first, second = executor.timeline
        assert first.start_ms < second.end_ms and second.start_ms < first.end_ms
    assert {frozenset(cores) for _, _, cores in engine.threads} == {frozenset({one}), frozenset({other})}
    assert threading.get_ident() not in {thread for _, thread, _ in engine.threads}


def test_pieces_start_after_what_they_wait_for_run_after_run() -> None:
    engine = FakeEngine(work_s=0.003)
    job = job_of(
        piece(0, [whole_x], [Port("out", "a")]),
        piece(1, [Port("in", "a")], [Port("out", "b")], cores=(0, 1), after=(0,)),
        piece(2, [Port("in", "a")], [Port("out", "c")], after=(0,)),
        piece(3, [Port("in", "b"), Port("also", "c")], [whole_y], cores=(0, 1), after=(1, 2)),
    )
    with running(job, engine) as executor:
        for run in range(5):
            x = np.full(SHAPE, run, np.float32)
            executor.run({"x": x})
            assert (executor.outputs["y"] == 2 * (run + 2) + 1).all()
            spans = {span.piece: span for span in executor.timeline}
            for number, waiting in enumerate(job.pieces):
                assert all(spans[before].end_ms <= spans[number].start_ms for before in waiting.after)


def test_a_failure_is_raised_and_leaves_nobody_waiting() -> None:
    engine = FakeEngine(fails=0)
    job = job_of(
        piece(0, [whole_x], [Port("out", "a")]), piece(1, [Port("in", "a")], [whole_y], cores=(0, 1), after=(0,))
    )
    with running(job, engine) as executor:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="out of order"):
                executor.run(X)
        engine.fails = None
        executor.run(X)
        assert (executor.outputs["y"] == 5).all()


def test_a_piece_that_does_not_load_is_the_constructor_s_error() -> None:
    class Broken(FakeEngine):
        def load(self, piece: Piece, folder: Path, inputs: Sequence[Array], outputs: Sequence[Array]) -> Session:
            if piece.segment == 1:
                raise OSError("no such file")
            return super().load(piece, folder, inputs, outputs)

    before = threading.active_count()
    job = job_of(
        piece(0, [whole_x], [Port("out", "a")]), piece(1, [Port("in", "a")], [whole_y], cores=(0, 1), after=(0,))
    )
    engine = Broken()
    with pytest.raises(OSError, match="no such file"):
        Executor(job, Path(), {"fake": engine})
    assert engine.closed == 1
    assert threading.active_count() == before


@pytest.mark.parametrize("others", [(), (0,)])
def test_cores_that_do_not_exist_are_an_error(others: tuple[int, ...]) -> None:
    pieces = [piece(0, [whole_x], [whole_y], cores=(1000,))]
    pieces += [piece(1, [Port("in", "y")], [Port("out", "z")], cores=(core,), after=(0,)) for core in others]
    with pytest.raises(OSError):
        Executor(job_of(*pieces), Path(), {"fake": FakeEngine()})


def test_a_capped_processor_idles_after_its_work() -> None:
    engine = FakeEngine(work_s=0.02)
    with running(job_of(piece(0, [whole_x], [whole_y], duty=0.25)), engine) as executor:
        begin = time.perf_counter()
        executor.run(X)
        took_ms = (time.perf_counter() - begin) * 1e3
        (span,) = executor.timeline
        assert took_ms >= 4 * (span.end_ms - span.start_ms)


def test_inputs_of_other_shapes_or_types_are_refused() -> None:
    with running(job_of(piece(0, [whole_x], [whole_y])), FakeEngine()) as executor:
        with pytest.raises(ValueError):
            executor.run({"x": np.zeros((2, 4, 6), np.float32)})
        with pytest.raises(TypeError):
            executor.run({"x": np.zeros(SHAPE, np.float64)})


@pytest.mark.parametrize("processor", ["cpu/onnxruntime/int8", "cpu/openvino/int4"])
def test_a_precision_that_an_engine_lacks_is_refused(processor: str, tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match=processor[-4:]):
        load_real(tmp_path, processor)


def load_real(folder: Path, processor: str) -> None:
    asked = piece(0, [whole_x], [whole_y], processor=processor, files=("m.onnx",))
    engine = find_engine(asked.engine)
    engine.load(asked, folder, [np.zeros(SHAPE, np.float32)], [np.zeros(SHAPE, np.float32)])


OPENVINO_THREADS = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from hetrl.device_bridge.runner.engines.openvino import _core
print(_core().compile_model(sys.argv[1], "CPU", {"INFERENCE_NUM_THREADS": 2}).get_property("INFERENCE_NUM_THREADS"))
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_openvino_uses_all_cores_though_a_pinned_thread_was_its_first(tmp_path: Path) -> None:
    path = save_tiny_cnn(tmp_path / "m.onnx")
    done = subprocess.run([sys.executable, "-c", OPENVINO_THREADS, path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2"


def test_engines_are_found_by_name() -> None:
    for name in NAMES:
        assert find_engine(name).name == name
    assert find_engine("onnxruntime").version()[0].isdigit()
    with pytest.raises(ValueError, match="there is no engine 'tensorrt'"):
        find_engine("tensorrt")
