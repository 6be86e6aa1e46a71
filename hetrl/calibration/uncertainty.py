"""Spreads for 90 % intervals, from held-out errors, and how often truth lies inside.

A spread is half the width of an interval on the logarithm: the root mean square of ln(measured / predicted) over
held-out cells of a kind, times Student's t for as many degrees of freedom as there are independent groups (networks,
pairs, phones) less one: errors of one network on four phones are nearly one error.

Errors differ by GPU family (Mali's plans are worse known than Adreno's), so a phone's spreads are those of the measured
phones of its family. A family of a few groups can agree by chance: four errors come out at less than half of their true
size once in eleven times (chi-squared), so no spread of a family is below half of that of all phones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from hetrl.calibration import conditions, held_out
from hetrl.calibration.engine_sets import fits
from hetrl.calibration.fit import FAMILY, INDEX, MODELS, PHONES, strategy_class
from hetrl.calibration.phones import phones
from hetrl.calibration.predict import CellError
from hetrl.calibration.rows import cells
from hetrl.calibration.scaling import NEAREST, a73_spread, gpu_rule_spread
from hetrl.device_bridge.quantity import Quantity, Source
from hetrl.device_bridge.spec import Engine, Known
from hetrl.device_bridge.surrogate.intervals import CHANNELS, OTHER_MEMORY, SPLIT

COVER = 0.90
# The class of plans (`surrogate.intervals`) that each class of measured strategies stands for.
PLAN_CLASS = {"mace_cpu": "cpu", "mace_gpu": "gpu", "codl": SPLIT, "codl_other": OTHER_MEMORY, "mulayer": CHANNELS}
LEAST_GROUPS = 3  # of a family's errors; the spreads of all phones where it has fewer
LEAST_SHARE = 0.5  # of the spreads of all phones, below which those of a family never go
SCALED_ROOFLINE_RULE = 0.4  # 90 % of |ln| around the rules of `engine_sets`; assumed, about what scaling costs here
Spreads = dict[str, float]


def of_network(error: CellError) -> str:
    return error.cell.model


def of_phone(error: CellError) -> str:
    return error.cell.device


def of_pair(error: CellError) -> str:
    return f"{error.cell.device}/{error.cell.model}"


def spreads(errors: Iterable[CellError], group: Callable[[CellError], str]) -> Spreads:
    """The spread of each plan class that has held-out errors."""
    return {
        name: _rms([e.log_error for e in found]) * _t(len({group(e) for e in found}) - 1)
        for name, found in _by_plan_class(errors).items()
    }


def family_spreads(errors: Sequence[CellError], group: Callable[[CellError], str], family: str) -> Spreads:
    """The spread of each plan class for phones of one GPU family; `errors` are of all phones."""
    own = [e for e in errors if FAMILY[e.cell.device] == family]
    enough = [n for n, found in _by_plan_class(own).items() if len({group(e) for e in found}) >= LEAST_GROUPS]
    mine, everyones = spreads(own, group), spreads(errors, group)
    return {n: max(mine[n], LEAST_SHARE * spread) if n in enough else spread for n, spread in everyones.items()}


def _by_plan_class(errors: Iterable[CellError]) -> dict[str, list[CellError]]:
    found: dict[str, list[CellError]] = {}
    for error in errors:
        name = PLAN_CLASS.get(strategy_class(error.cell))
        if name is not None:
            found.setdefault(name, []).append(error)
    return dict(sorted(found.items()))


def _rms(values: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _t(freedom: int) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + COVER) / 2, max(1, freedom)))


def mace_errors(phone: str) -> dict[str, dict[str, Quantity]]:
    """The error tables of a phone's `mace` engine set, without what conditions add."""
    family = phones()[phone].family
    seen = family_spreads(held_out.leave_one_pair_out(), of_pair, family)
    unseen = family_spreads(held_out.leave_one_model_out(), of_network, family)
    unseen = {name: max(value, seen[name]) for name, value in unseen.items()}
    if phone in PHONES:
        # The fit's numbers take degrees of freedom from its own cells.
        inflate = float(np.sqrt(len(cells()) / (len(cells()) - len(INDEX))))
        inside = family_spreads(held_out.in_sample(), of_pair, family)
        calibrated = {name: min(value * inflate, seen[name]) for name, value in inside.items()}
        note = f"of {family} phones"
        return {
            Known.CALIBRATED: _quantities(
                calibrated, f"in sample {note}, enlarged for the numbers fitted, at most as held out"
            ),
            Known.SEEN: _quantities(seen, f"leave one (phone, network) out, {note}"),
            Known.UNSEEN: _quantities(unseen, f"leave one network out, {note}"),
        }
    scaled, note = scaled_spreads(phone), "leave one phone out, scaled from the others"
    # Nobody can know a phone better than those that it is scaled from.
    known = {name: max(value, seen[name]) for name, value in scaled.items()}
    both = {name: float(np.hypot(value, unseen[name])) for name, value in scaled.items()}
    return {
        Known.SEEN: _quantities(known, note),
        Known.UNSEEN: _quantities(both, f"{note}, and leave one network out of {family} phones"),
    }


def scaled_spreads(phone: str) -> Spreads:
    """Spreads of a phone that is scaled from others, with a rule's own where no measured phone could test it."""
    facts, factor = phones()[phone], _t(len(PHONES) - 1)
    found = spreads(held_out.leave_one_phone_out(), of_phone)
    same_gpu = any(phones()[p].gpu == facts.gpu for p in NEAREST[phone].gpu)
    cpu = a73_spread() * factor if facts.slow_big_core.coremark_per_mhz is None else 0.0
    gpu = 0.0 if same_gpu else gpu_rule_spread() * factor
    rules = {"cpu": cpu, "gpu": gpu}
    both = float(np.hypot(cpu, gpu))
    return {name: float(np.hypot(value, rules.get(name, both))) for name, value in found.items()}


def shifted_errors(d1: Engine) -> dict[str, Quantity]:
    """What a condition adds: errors over the study's Table 3, each network by a fit to the others.

    :param d1: the `mace` engine set of the phone of Table 3.
    """
    rows = conditions.leave_one_model_out(conditions.profiles(d1))
    logs = [float(np.log1p(e)) for _, errors in rows for e in errors]
    spread = _rms(logs) * _t(len({p.model for p, _ in rows}) - 1)
    return _quantities({"all": spread}, "arXiv 2405.01851 table 3, leave one network out")


def roofline_errors(name: str, engine: Engine) -> dict[str, dict[str, Quantity]]:
    """The error table of a `tflite` or `ncnn` engine set: 90 % quantiles of its held-out networks, per unit."""
    table = fits().held_out[name]
    found: Spreads = {}
    for processor in engine.processors:
        launch = processor.cost.launch_ms
        groups = {"dsp": ("hvx", "htp")}.get(processor.unit, (processor.unit,))
        spread = [
            figures["all"]["p90_log"]
            for group in groups
            for silicon, figures in table.get(group, {}).items()
            if silicon in launch.note
        ]
        rule = SCALED_ROOFLINE_RULE if launch.source is Source.SCALED else 0.0
        found[processor.unit] = float(np.hypot(max(spread), rule))
    found[SPLIT] = max(found.values())
    return {Known.UNSEEN: _quantities(found, f"held-out networks of {name}, hetrl/data/engine_fits.json")}


def _quantities(spread: Mapping[str, float], note: str) -> dict[str, Quantity]:
    text = f"90 % of |ln(measured / predicted)|: {note}"
    return {name: Quantity(value, Source.FITTED, text) for name, value in spread.items()}


def coverage(errors: Iterable[CellError], widths: Mapping[str, Spreads]) -> list[bool]:
    """Which held-out cells lie inside the interval that errors of other cells give their phone."""
    return [
        abs(error.log_error) <= widths[error.cell.device][name]
        for name, found in _by_plan_class(errors).items()
        for error in found
    ]


def _widths(errors: Sequence[CellError], group: Callable[[CellError], str]) -> dict[str, Spreads]:
    return {phone: family_spreads(errors, group, FAMILY[phone]) for phone in PHONES}


def nested_seen() -> list[bool]:
    """Coverage for networks seen on other phones: widths come from fits that saw nothing of the cell either."""
    inside = []
    for pair in held_out.pairs():
        widths = _widths(held_out.leave_one_pair_out(without=(pair,)), of_pair)
        inside += coverage(held_out.of_pair_alone(pair), widths)
    return inside


def nested_unseen() -> list[bool]:
    """The same for unseen networks: widths from the other networks, by fits that saw neither."""
    inside = []
    for model in MODELS:
        hidden = tuple((p, m) for p, m in held_out.pairs() if m == model)
        others = [e for m in MODELS if m != model for e in held_out.of_model(m, without=hidden)]
        inside += coverage(held_out.of_model(model), _widths(others, of_network))
    return inside


def nested_scaled() -> list[bool]:
    """The same for scaled phones: widths from the other phones' errors (whose fits did see this phone)."""
    errors = held_out.leave_one_phone_out()
    inside = []
    for phone in PHONES:
        widths = spreads([e for e in errors if e.cell.device != phone], of_phone)
        inside += coverage([e for e in errors if e.cell.device == phone], {phone: widths})
    return inside
