"""Optuna's samplers: one ask-and-tell loop over the run's ledger."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna.trial import Trial as Asked

from hetrl.agents.base import AgentRun
from hetrl.agents.ledger import column_key
from hetrl.agents.samplers.drafts import Ints
from hetrl.agents.samplers.encoding import Encoding, Parameter
from hetrl.agents.samplers.journal import Journal
from hetrl.agents.trials import Trial

VARIATIONS = 32  # of a plan that is known, before the sampler is asked again


class Values(Enum):
    """What a sampler's parameters are."""

    CATEGORIES = auto()
    NUMBERS = auto()  # whole numbers where neighbours are alike, else categories
    REALS = auto()  # rounded down


@dataclass(frozen=True)
class Optimiser:
    """An Optuna sampler, and how it likes to be asked.

    :param make: the sampler for a seed.
    :param batch: plans that it proposes before it hears how they did.
    :param memory: so many of the trials, the best and the latest ones, does it keep in mind: for samplers whose time
        per proposal grows with what they know. None for all.
    :param constrained: it knows constraints; otherwise plans that break a budget are told as slower than they are.
    :param hears_again: it needs the answer for a plan that it has proposed before; others hear that it failed.
    """

    make: Callable[[int], BaseSampler]
    batch: int = 1
    memory: int | None = None
    values: Values = Values.NUMBERS
    constrained: bool = True
    hears_again: bool = False


@contextmanager
def quiet() -> Generator[None]:
    """Optuna neither logs nor warns: what it has to say is about the choices made here, not its users'."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)


class Indices(CategoricalDistribution):
    """The categories 0 to below `count`. Optuna copies and compares distributions in every trial; these are constants,
    which takes a third off what a proposal of its TPE takes."""

    def __init__(self, count: int) -> None:
        super().__init__(range(count))

    def to_internal_repr(self, param_value_in_external_repr: CategoricalChoiceType) -> float:
        return float(param_value_in_external_repr or 0)

    def __deepcopy__(self, memo: dict[int, object]) -> Indices:
        return self

    def __eq__(self, other: object) -> bool:
        return self is other or super().__eq__(other)

    __hash__ = CategoricalDistribution.__hash__


class OptunaSearch:
    """One run of a sampler."""

    def __init__(self, run: AgentRun, encoding: Encoding, optimiser: Optimiser) -> None:
        self._ledger = run.ledger
        self._name = run.name
        self._encoding = encoding
        self._optimiser = optimiser
        self._rng = np.random.default_rng(run.seed)
        self._distributions = {p.name: _distribution(p, optimiser.values) for p in encoding.parameters}
        self._labelled = {p.name: _labelled(p) for p in encoding.parameters}
        self._study = optuna.create_study(sampler=optimiser.make(run.seed))
        self._journal = Journal(run.folder, run.name) if run.folder is not None else None
        self._vectors: dict[str, Ints] = {}  # by key, of the plans that the parameters describe
        self._trials: dict[str, Trial] = {}  # by key, all that the ledger has
        self._told: set[str] = set()
        for trial in run.ledger.trials:
            if trial.decisions is not None:
                # The ledger answers from memory, so that seeds which the parameters describe cost nothing.
                vector = encoding.encode(np.array(trial.decisions, dtype=np.int64))
                self._decode([vector])
                self._enqueue(vector)

    def run(self, patience: int) -> None:
        """Until the budget is spent, or `patience` proposals in a row were nothing new."""
        ledger, idle = self._ledger, 0
        while not ledger.exhausted and idle < patience:
            before = ledger.evaluations
            asked = [self._study.ask(self._distributions) for _ in range(self._optimiser.batch)]
            vectors = [self._vector(trial) for trial in asked]
            taken, keys = self._decode(vectors)
            ledger.outcomes(taken, self._name)
            self.record()
            for trial, vector, key in zip(asked, vectors, keys, strict=True):
                self._tell(trial, vector, key)
            idle = idle + len(asked) if ledger.evaluations == before else 0
            self._forget()

    def record(self) -> None:
        """Take over what is new in the ledger, into the journal too."""
        for trial in self._ledger.trials[len(self._trials) :]:
            self._trials[trial.key] = trial
            vector = self._vectors.get(trial.key)
            if self._journal is not None and vector is not None:
                self._journal.append(self._frozen(trial, vector))

    def _tell(self, asked: Asked, vector: Ints, key: str) -> None:
        trial = self._trials.get(key)
        if trial is None:
            return  # the budget was spent before its turn
        known = key in self._told
        self._told.add(key)
        if known:
            self._enqueue_variation(vector)
        if trial.latency_ms is None or (known and not self._optimiser.hears_again):
            self._study.tell(asked, state=TrialState.FAIL)
            return
        if not self._optimiser.constrained:
            self._study.tell(asked, self._ledger.cost_ms(trial))
            return
        for name, over in self._over_budgets(trial).items():
            asked.set_constraint(name, over)
        self._study.tell(asked, trial.latency_ms)

    def _forget(self) -> None:
        """Begin a new study once the sampler knows twice as much as it can keep in mind."""
        most = self._optimiser.memory
        if most is None or len(self._study.get_trials(deepcopy=False)) < 2 * most:
            return
        known = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        ranked = sorted(known, key=lambda t: (max([0.0, *t.constraints.values()]), t.value, t.number))
        kept = {t.number for t in [*ranked[: most // 2], *known[len(known) - most // 2 :]]}
        waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        self._study = optuna.create_study(sampler=self._optimiser.make(int(self._rng.integers(2**32))))
        self._study.add_trials([*(t for t in known if t.number in kept), *waiting])

    def _over_budgets(self, trial: Trial) -> dict[str, float]:
        """How far a trial is above each budget; negative below."""
        objective = self._ledger.objective
        over = {"accuracy_drop_pct": trial.accuracy_drop_pct - objective.max_accuracy_drop_pct}
        if objective.max_frame_drop_rate is not None:
            over["frame_drop_rate"] = (trial.frame_drop_rate or 0.0) - objective.max_frame_drop_rate
        return over

    def _decode(self, vectors: list[Ints]) -> tuple[Ints, list[str]]:
        """(length, B) decisions, and the ledger's keys of them."""
        taken = np.stack([self._encoding.decode(vector) for vector in vectors], axis=1)
        keys = [column_key(column) for column in self._ledger.space.canonical(taken).T]
        for key, vector in zip(keys, vectors, strict=True):
            self._vectors.setdefault(key, vector)
        return taken, keys

    def _enqueue(self, vector: Ints) -> None:
        middle = 0.5 if self._optimiser.values is Values.REALS else 0
        names = [p.name for p in self._encoding.parameters]
        self._study.enqueue_trial({name: value + middle for name, value in zip(names, vector.tolist(), strict=True)})

    def _enqueue_variation(self, vector: Ints) -> None:
        """Let the next plan be like this one, but new: a sampler that has settled would propose it for ever."""
        for attempt in range(VARIATIONS):
            varied = vector.copy()
            for which in self._rng.integers(len(vector), size=1 + attempt // 8):
                varied[which] = self._rng.integers(self._encoding.parameters[which].count)
            _, (key,) = self._decode([varied])
            if key not in self._trials:
                self._enqueue(varied)
                return

    def _vector(self, asked: Asked) -> Ints:
        """The values of the parameters that the sampler chose."""
        chosen = asked.params  # a deep copy, each time
        values = [min(int(chosen[p.name]), p.count - 1) for p in self._encoding.parameters]
        return np.array(values, dtype=np.int64)

    def _frozen(self, trial: Trial, vector: Ints) -> FrozenTrial:
        """The journal's record of an evaluation."""
        values = zip(self._encoding.parameters, vector.tolist(), strict=True)
        return create_trial(
            state=TrialState.FAIL if trial.latency_ms is None else TrialState.COMPLETE,
            value=trial.latency_ms,
            params={p.name: v if p.labels is None else p.labels[v] for p, v in values},
            distributions=self._labelled,
            user_attrs={"evaluation": trial.n, "by": trial.by} | ({"error": trial.error} if trial.error else {}),
            constraints=self._over_budgets(trial),
        )


def _distribution(parameter: Parameter, values: Values) -> BaseDistribution:
    if values is Values.REALS:
        return FloatDistribution(0.0, parameter.count)
    number = parameter.ordered and values is Values.NUMBERS
    return IntDistribution(0, parameter.count - 1) if number else Indices(parameter.count)


def _labelled(parameter: Parameter) -> BaseDistribution:
    """For people."""
    if parameter.labels is None:
        return IntDistribution(0, parameter.count - 1)
    return CategoricalDistribution(parameter.labels)
