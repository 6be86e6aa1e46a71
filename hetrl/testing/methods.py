"""What every agent and sampler must do, as tests: subclass `MethodConformance` in a test module, and give it a method.

    class TestMyAgent(MethodConformance):
        @pytest.fixture
        def method(self):
            return my_agent

Where a method needs more evaluations to learn the toy chain, `budget` may be overridden; say so where you describe it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from hetrl.agents.base import AgentRun, Method
from hetrl.agents.ledger import Ledger, is_sound
from hetrl.agents.problem import Problem
from hetrl.agents.settings import configured
from hetrl.agents.trials import Trial
from hetrl.condition import Condition
from hetrl.device_bridge.base import Device, MockDevice
from hetrl.device_bridge.spec import load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.envs.evaluate import Outcomes
from hetrl.envs.space import Ints
from hetrl.graph import OperatorGraph
from hetrl.graph.reader import graph_from_model
from hetrl.measurement import Failure, Measurement
from hetrl.objective import Objective
from hetrl.plan import Plan
from hetrl.plan_check import check_plan
from hetrl.zoo.builder import Builder

Layers = Sequence[tuple[int, int, int]]  # output channels, kernel, stride
TOY: Layers = ((64, 1, 1), (16, 5, 1), (256, 1, 2), (128, 1, 1), (8, 1, 1))
NAME = "under-test"
FAILING = 0.3  # share of the plans whose measurement fails
ENDLESS = 50_000  # proposals after which a method is taken to go on for ever
BOTH_BUDGETS = Objective(max_accuracy_drop_pct=2.0, max_frame_drop_rate=0.05)


def chain(layers: Layers, size: int) -> OperatorGraph:
    """Convolutions one after the other, on an image of 16 channels and `size` rows and columns."""
    net = Builder("chain")
    x = net.input("x", (1, 16, size, size))
    for number, (channels, kernel, stride) in enumerate(layers):
        x = net.activation(net.conv(x, f"l{number}", channels, kernel, stride=stride), f"l{number}.relu")
    return graph_from_model(net.finish(x).model, name="chain")


@cache
def toy_device() -> SurrogateDevice:
    """The toy chain on a CPU and a GPU that are about as fast: the optimum moves to the GPU for one layer, and back."""
    return SurrogateDevice(load_spec("d4"), chain(TOY, 112), "ncnn")


@cache
def tiny_device() -> SurrogateDevice:
    """One convolution, of which there are few plans."""
    return SurrogateDevice(load_spec("d4"), chain(TOY[:1], 16), "ncnn")


class Watched(Ledger):
    """A ledger that ends a method which proposes for ever, or has found what is good enough."""

    proposed = 0
    enough_ms = 0.0

    @property
    def exhausted(self) -> bool:
        return super().exhausted or (self.best is not None and self.best.cost_ms <= self.enough_ms)

    def outcomes(self, taken: Ints, by: str) -> Outcomes:
        self.proposed += taken.shape[1]
        assert self.proposed < ENDLESS, f"{self.proposed} proposals, and only {self.evaluations} of them new"
        return super().outcomes(taken, by)


class MethodConformance:
    """See the module's text.

    :cvar budget: evaluations, the reference's included, within which the toy chain is learnt without seeds.
    :cvar some: evaluations where learning is not at issue; fewer where each takes seconds.
    :cvar gap: how far from its exact optimum, as a fraction.
    """

    budget = 400
    some = 48
    gap = 0.02

    @pytest.fixture
    def method(self) -> Method[Any]:
        raise NotImplementedError("override the fixture `method`")

    def test_describes_itself(self, method: Method[Any]) -> None:
        assert method.summary and "\n" not in method.summary
        for budget in (1, 50, 1_000, 100_000):
            settings = configured(method, NAME, budget, {})
            assert isinstance(settings, method.config)
            with pytest.raises(AttributeError):  # frozen
                setattr(settings, next(iter(msgspec.structs.asdict(settings)), "anything"), None)
            # A run folder keeps them as JSON.
            assert msgspec.json.decode(msgspec.json.encode(settings), type=method.config) == settings

    def test_learns_the_toy_chain(self, method: Method[Any], tmp_path: Path) -> None:
        problem = Problem.on(toy_device(), Condition(), Objective())
        exact_ms = problem.optimum.latency_ms
        assert exact_ms is not None
        ledger = search(method, problem, self.budget, tmp_path, enough_ms=exact_ms * (1 + self.gap))
        assert ledger.best is not None
        gap = ledger.best.cost_ms / exact_ms - 1
        assert -1e-9 <= gap <= self.gap, f"{100 * gap:.1f} % from the optimum after {ledger.evaluations} evaluations"

    def test_same_seed_same_trials(self, method: Method[Any], tmp_path: Path) -> None:
        problem = Problem.on(toy_device(), Condition(), Objective())
        runs = [search(method, problem, self.some, tmp_path / name, seed=7).trials for name in ("a", "b")]
        assert msgspec.json.encode(runs[0]) == msgspec.json.encode(runs[1])

    def test_survives_failed_measurements(self, method: Method[Any], tmp_path: Path) -> None:
        problem = Problem.on(flaky(toy_device()), Condition(), Objective())
        ledger = search(method, problem, 3 * self.some, tmp_path)
        failed = [trial for trial in ledger.trials if trial.latency_ms is None]
        assert failed, "no proposal was of the plans that fail"
        assert len(failed) < len(ledger.trials) / 2, "it went on proposing plans like those that failed"
        assert len(ledger.trials) > self.some / 3, "it gave up"
        assert ledger.best is not None and ledger.best.cost_ms < ledger.reference_ms
        check_plan(ledger.plan(ledger.best.trial, None), problem.graph)

    def test_keeps_masks_and_budgets(self, method: Method[Any], tmp_path: Path) -> None:
        asked: list[str] = []
        device = counting(toy_device(), asked)
        problem = Problem.on(device, Condition(), BOTH_BUDGETS)
        reference_ms = problem.reference_ms
        asked.clear()
        ledger = search(method, problem, self.some, tmp_path)
        assert ledger.reference_ms == reference_ms
        assert len(ledger.trials) == ledger.evaluations <= self.some
        assert len(set(asked)) == len(asked) == ledger.evaluations, "measured twice, or behind the ledger's back"
        assert all(is_sound(trial, problem.space) for trial in ledger.trials), "a decision that the masks forbid"
        assert {trial.by for trial in ledger.trials} <= {"reference", NAME}
        assert ledger.best is not None and BOTH_BUDGETS.keeps(*ledger.best.trial.outcome[1:3])
        again = device.measure(ledger.plan(ledger.best.trial, None), problem.condition)
        assert again.latency_ms is not None and np.isclose(again.latency_ms, ledger.best.cost_ms)

    @pytest.mark.parametrize("budget", [2, 3])
    def test_spends_the_smallest_budgets(self, method: Method[Any], budget: int, tmp_path: Path) -> None:
        problem = Problem.on(toy_device(), Condition(), Objective())
        assert search(method, problem, budget, tmp_path).evaluations == budget

    def test_ends_when_nothing_new_is_left(self, method: Method[Any], tmp_path: Path) -> None:
        problem = Problem.on(tiny_device(), Condition(), Objective())
        ledger = search(method, problem, 10_000, tmp_path)
        exact_ms = problem.optimum.latency_ms
        assert exact_ms is not None and ledger.best is not None and not ledger.exhausted
        assert ledger.best.cost_ms <= exact_ms * (1 + self.gap)

    def test_goes_on_from_any_of_its_trials(self, method: Method[Any], tmp_path: Path) -> None:
        problem = Problem.on(flaky(toy_device()), Condition(), Objective())
        whole = search(method, problem, self.some, tmp_path).trials
        for known in (0, 1, len(whole) // 3, len(whole) - 1, len(whole)):
            asked: list[str] = []
            rest = Problem.on(counting(problem.device, asked), Condition(), Objective())
            rest.reference_ms  # noqa: B018 - measured now, so that it is not counted
            asked.clear()
            # The folder holds what a longer run has left there, as after a crash between two files.
            resumed = search(method, rest, self.some, tmp_path, known=whole[:known]).trials
            assert msgspec.json.encode(resumed) == msgspec.json.encode(whole), f"other trials after {known}"
            assert len(asked) == len(whole) - known, f"measured again after {known}"


def search(
    method: Method[Any],
    problem: Problem,
    budget: int,
    folder: Path,
    *,
    seed: int = 0,
    known: Sequence[Trial] = (),
    enough_ms: float = 0.0,
) -> Ledger:
    """What `hetrl train --no-seeds` does, without its files; a plan of `enough_ms` ends it."""
    folder.mkdir(exist_ok=True)
    ledger = Watched(
        problem.space, problem.device, problem.condition, problem.objective, budget, known=copy.deepcopy(known)
    )
    ledger.enough_ms = enough_ms
    ledger.measure(problem.cpu_plan(), "reference")
    ledger.reference_ms = problem.reference_ms
    if not ledger.exhausted:
        run = AgentRun(NAME, ledger, seed, folder)
        method.propose(run, configured(method, NAME, budget, {}))
    return ledger


def counting(device: Device, asked: list[str]) -> MockDevice:
    """The same device; the keys of all plans that it measures are put into `asked`."""

    def answer(plan: Plan, condition: Condition) -> Measurement:
        asked.append(plan.key)
        return device.measure(plan, condition)

    return MockDevice(device.spec, device.graph, answer, device.engine_name)


def flaky(device: SurrogateDevice) -> MockDevice:
    """The same device, but three plans in ten always fail; never the reference, the whole model on the CPU."""
    reference = Problem.on(device, Condition(), Objective()).cpu_plan().key

    def answer(plan: Plan, condition: Condition) -> Measurement:
        if plan.key != reference and int(plan.key[:8], 16) < FAILING * 16**8:
            return Measurement.failed(Failure.TIMEOUT, "took too long")
        return device.measure(plan, condition)

    return MockDevice(device.spec, device.graph, answer, device.engine_name)
