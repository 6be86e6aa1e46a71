"""Held-out errors: every cell predicted by fits that did not see it, in three ways."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import combinations
from multiprocessing import get_context

from hetrl.calibration.fit import MODELS, PHONES, Fit, engine_of, fit_all
from hetrl.calibration.predict import CellError, predictions
from hetrl.calibration.rows import cells
from hetrl.calibration.scaling import STAND_IN, scaled_engine

Pair = tuple[str, str]  # phone, network
_fits: dict[frozenset[Pair], Fit] = {}


def pairs() -> tuple[Pair, ...]:
    """The (phone, network) pairs of the rows."""
    return tuple(sorted({(c.device, c.model) for c in cells()}))


def fit_without(dropped: frozenset[Pair]) -> Fit:
    """The fit that sees nothing of some (phone, network) pairs, per-operator ratios included; each is made once."""
    if dropped not in _fits:
        _fits[dropped] = _fit_without(dropped)
    return _fits[dropped]


def fit_ahead(*, nested: bool) -> None:
    """Make the fits that held-out errors need, on all cores.

    :param nested: also those of the coverage checks, which leave out a second network or pair.
    """
    networks = [frozenset(p for p in pairs() if p[1] == model) for model in MODELS]
    alone = [frozenset({pair}) for pair in pairs()]
    wanted = [frozenset[Pair](), *networks, *alone, *(frozenset(p for p in pairs() if p[0] == d) for d in PHONES)]
    if nested:
        wanted += [a | b for group in (networks, alone) for a, b in combinations(group, 2)]
    missing = [dropped for dropped in wanted if dropped not in _fits]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        _fits.update(zip(missing, pool.map(_fit_without, missing), strict=True))


def _fit_without(dropped: frozenset[Pair]) -> Fit:
    kept = [c for c in cells() if (c.device, c.model) not in dropped]
    return fit_all(kept, set(pairs()) - dropped)


@cache
def in_sample() -> tuple[CellError, ...]:
    """Errors of the fit to all rows."""
    return _errors(fit_without(frozenset()), pairs())


def of_model(model: str, without: tuple[Pair, ...] = ()) -> tuple[CellError, ...]:
    """A network's cells by a fit that saw no row of it, nor of the pairs in `without`."""
    own = frozenset(pair for pair in pairs() if pair[1] == model)
    return _errors(fit_without(own | frozenset(without)), own - set(without))


@cache
def leave_one_model_out() -> tuple[CellError, ...]:
    """Unseen networks: each on all phones, by a fit that never saw it."""
    return tuple(error for model in MODELS for error in of_model(model))


def of_pair_alone(pair: Pair, without: tuple[Pair, ...] = ()) -> tuple[CellError, ...]:
    """One (phone, network)'s cells by a fit to all other rows but those in `without`."""
    return _errors(fit_without(frozenset({pair, *without})), [pair])


@cache
def leave_one_pair_out(without: tuple[Pair, ...] = ()) -> tuple[CellError, ...]:
    """Networks that were seen on other phones only: each (phone, network) by a fit to all other rows."""
    return tuple(error for pair in pairs() if pair not in without for error in of_pair_alone(pair, without))


@cache
def leave_one_phone_out() -> tuple[CellError, ...]:
    """Scaled phones: each by the rules of `scaling`, from fits that saw no row of it; d5 has no stand-in GPU."""
    found: list[CellError] = []
    for phone, nearest in STAND_IN.items():
        fit = fit_without(frozenset(pair for pair in pairs() if pair[0] == phone))
        mine = [c for c in cells() if c.device == phone and (nearest.gpu or c.strategy == "mace_cpu")]
        found += predictions(mine, {phone: scaled_engine(fit, phone, nearest)})
    return tuple(found)


def _errors(fit: Fit, wanted: Iterable[Pair]) -> tuple[CellError, ...]:
    chosen = set(wanted)
    mine = [c for c in cells() if (c.device, c.model) in chosen]
    return tuple(predictions(mine, {phone: engine_of(fit, phone) for phone in sorted({p for p, _ in chosen})}))
