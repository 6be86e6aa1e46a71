"""Held-out errors: every cell predicted by fits that did not see it, in three ways."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from hetrl.calibration.fit import MODELS, PHONES, Fit, engine_of, fit_all
from hetrl.calibration.predict import CellError, predictions
from hetrl.calibration.rows import cells
from hetrl.calibration.scaling import STAND_IN, scaled_engine

Pair = tuple[str, str]  # phone, network


def pairs() -> tuple[Pair, ...]:
    """The (phone, network) pairs of the rows."""
    return tuple(sorted({(c.device, c.model) for c in cells()}))


@cache
def fit_without(dropped: frozenset[Pair]) -> Fit:
    """The fit that sees nothing of some (phone, network) pairs, per-operator ratios included."""
    kept = [c for c in cells() if (c.device, c.model) not in dropped]
    return fit_all(kept, {(p, m) for p in PHONES for m in MODELS} - dropped)


@cache
def in_sample() -> tuple[CellError, ...]:
    """Errors of the fit to all rows."""
    return _errors(fit_without(frozenset()), pairs())


def of_model(model: str, without: tuple[Pair, ...] = ()) -> tuple[CellError, ...]:
    """A network's cells by a fit that saw no row of it, nor of the pairs in `without`."""
    hidden = frozenset((p, model) for p in PHONES)
    fit = fit_without(hidden | frozenset(without))
    return _errors(fit, [(p, m) for p, m in pairs() if m == model and (p, m) not in without])


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
        fit = fit_without(frozenset((phone, m) for m in MODELS))
        mine = [c for c in cells() if c.device == phone and (nearest.gpu or c.strategy == "mace_cpu")]
        found += predictions(mine, {phone: scaled_engine(fit, phone, nearest)})
    return tuple(found)


def _errors(fit: Fit, wanted: Iterable[Pair]) -> tuple[CellError, ...]:
    chosen = set(wanted)
    mine = [c for c in cells() if (c.device, c.model) in chosen]
    return tuple(predictions(mine, {phone: engine_of(fit, phone) for phone in sorted({p for p, _ in chosen})}))
