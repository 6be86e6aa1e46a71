"""Optuna's samplers as methods: their settings, and what suits a budget. Optuna itself is imported when one runs."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import msgspec

from hetrl.agents.base import AgentRun, Method
from hetrl.agents.samplers.encoding import Form, encoding
from hetrl.agents.samplers.settings import at_least
from hetrl.errors import MissingExtra

if TYPE_CHECKING:
    from hetrl.agents.samplers.optuna_search import Optimiser

EXTRA = "search"


class OptunaConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings that all of them have.

    :param encoding: the parameters that describe a plan: `cuts` (where pieces begin, and a placement for each) or
        `layers` (a placement for every fusion group).
    :param pieces: of `cuts`; 0 for as many as suit the model.
    :param patience: proposals without a new plan after which the search ends.
    """

    encoding: Form = "cuts"
    pieces: int = 0
    patience: int = 200

    def __post_init__(self) -> None:
        at_least(self, "pieces", 0)
        at_least(self, "patience", 1)


class ModelConfig(OptunaConfig, frozen=True, kw_only=True):
    """Settings of the samplers that fit a model.

    :param startup: random plans before the first model.
    :param memory: so many evaluations, half of them the best and half the latest, go into every model; in between,
        up to twice as many. A proposal takes the longer, the more there are.
    """

    startup: int = 10
    memory: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "startup", 1)
        at_least(self, "memory", 10)


class PopulationConfig(OptunaConfig, frozen=True, kw_only=True):
    """Settings of the samplers that work in generations.

    :param population: plans of a generation, which are measured together.
    """

    population: int

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "population", 2)


def _search(run: AgentRun, config: OptunaConfig, optimiser: Optimiser) -> None:
    from hetrl.agents.samplers.optuna_search import OptunaSearch, quiet

    with quiet():
        space, objective = run.ledger.space, run.ledger.objective
        search = OptunaSearch(run, encoding(config.encoding, space, objective, config.pieces), optimiser)
        try:
            search.run(config.patience)
        finally:
            search.record()


def _tpe(run: AgentRun, config: ModelConfig) -> None:
    from optuna.samplers import TPESampler

    from hetrl.agents.samplers.optuna_search import Optimiser, Values

    def make(seed: int) -> TPESampler:
        return TPESampler(n_startup_trials=config.startup, constant_liar=False, seed=seed)

    # Categories alone: whole numbers take about twice as long per proposal.
    _search(run, config, Optimiser(make, memory=config.memory, values=Values.CATEGORIES))


def _nsga2(run: AgentRun, config: PopulationConfig) -> None:
    from optuna.samplers import NSGAIISampler

    from hetrl.agents.samplers.optuna_search import Optimiser

    def make(seed: int) -> NSGAIISampler:
        return NSGAIISampler(population_size=config.population, seed=seed)

    _search(run, config, Optimiser(make, batch=config.population))


def _cmaes(run: AgentRun, config: PopulationConfig) -> None:
    from optuna.samplers import CmaEsSampler

    from hetrl.agents.samplers.optuna_search import Optimiser, Values

    def make(seed: int) -> CmaEsSampler:
        return CmaEsSampler(popsize=config.population, warn_independent_sampling=False, seed=seed)

    optimiser = Optimiser(make, batch=config.population, values=Values.REALS, constrained=False, hears_again=True)
    _search(run, config, optimiser)


def _gp(run: AgentRun, config: ModelConfig) -> None:
    import torch
    from optuna.samplers import GPSampler

    from hetrl.agents.samplers.optuna_search import Optimiser, Values

    def make(seed: int) -> GPSampler:
        return GPSampler(n_startup_trials=config.startup, deterministic_objective=True, seed=seed)

    torch.set_num_threads(1)  # sums in several threads may differ in their last bits from run to run
    _search(run, config, Optimiser(make, memory=config.memory, values=Values.REALS))


def _need(package: str, feature: str) -> None:
    """
    :raises MissingExtra: the package is not installed.
    """
    if find_spec(package) is None:
        raise MissingExtra(feature, EXTRA)


tpe = Method(
    "Optuna's tree-structured Parzen estimator",
    ModelConfig,
    lambda budget: ModelConfig(),
    _tpe,
)
nsga2 = Method(
    "Optuna's NSGA-II, a genetic algorithm",
    PopulationConfig,
    lambda budget: PopulationConfig(population=min(50, max(10, budget // 20))),
    _nsga2,
)
cmaes = Method(
    "Optuna's CMA-ES, which adapts a normal distribution",
    PopulationConfig,
    lambda budget: PopulationConfig(population=12),
    _cmaes,
    check=lambda: _need("cmaes", "the sampler cmaes"),
)
gp = Method(
    "Optuna's Gaussian process; slow, for budgets of some hundreds",
    ModelConfig,
    lambda budget: ModelConfig(patience=20),  # a proposal takes it about half a second
    _gp,
    check=lambda: _need("scipy", "the sampler gp"),
)
