"""Spreads for 90 % intervals, from held-out errors, and how often truth lies inside.

A spread is half the width of an interval on the logarithm: the root mean square of ln(measured / predicted) over
held-out cells of a kind, times Student's t for as many degrees of freedom as there are independent groups (networks,
pairs, phones) less one: errors of one network on four phones are nearly one error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from hetrl.calibration import conditions, held_out
from hetrl.calibration.engine_sets import fits
from hetrl.calibration.fit import INDEX, MODELS, PHONES, strategy_class
from hetrl.calibration.phones import phones
from hetrl.calibration.predict import CellError
from hetrl.calibration.rows import cells
from hetrl.calibration.scaling import NEAREST, a73_spread, gpu_rule_spread
from hetrl.device_bridge.spec import Engine, Known, Quantity, Source
from hetrl.device_bridge.surrogate.intervals import CHANNELS, OTHER_MEMORY, SPLIT

COVER = 0.90
# The class of plans (`surrogate.intervals`) that each class of measured strategies stands for.
PLAN_CLASS = {"mace_cpu": "cpu", "mace_gpu": "gpu", "codl": SPLIT, "codl_other": OTHER_MEMORY, "mulayer": CHANNELS}
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
    by_class: dict[str, list[CellError]] = {}
    for error in errors:
        name = PLAN_CLASS.get(strategy_class(error.cell))
        if name is not None:
            by_class.setdefault(name, []).append(error)
    return {
        name: _rms([e.log_error for e in found]) * _t(len({group(e) for e in found}) - 1)
        for name, found in sorted(by_class.items())
    }


def _rms(values: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _t(freedom: int) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + COVER) / 2, max(1, freedom)))


def _hypot(a: Mapping[str, float], b: Mapping[str, float]) -> Spreads:
    return {name: float(np.hypot(a[name], b.get(name, 0.0))) for name in a}


def mace_errors(phone: str) -> dict[str, dict[str, Quantity]]:
    """The error tables of a phone's `mace` engine set, without what conditions add."""
    unseen = spreads(held_out.leave_one_model_out(), of_network)
    if phone in PHONES:
        # The fit's numbers take degrees of freedom from its own cells.
        inflate = float(np.sqrt(len(cells()) / (len(cells()) - len(INDEX))))
        seen = spreads(held_out.leave_one_pair_out(), of_pair)
        inside = {k: min(v * inflate, seen[k]) for k, v in spreads(held_out.in_sample(), of_pair).items()}
        return {
            Known.CALIBRATED: _quantities(inside, "in sample, enlarged for the numbers fitted, or held out if smaller"),
            Known.SEEN: _quantities(seen, "leave one (phone, network) out"),
            Known.UNSEEN: _quantities(unseen, "leave one network out"),
        }
    scaled, note = scaled_spreads(phone), "leave one phone out, scaled from the others"
    return {
        Known.SEEN: _quantities(scaled, note),
        Known.UNSEEN: _quantities(_hypot(scaled, unseen), f"{note}, and leave one network out"),
    }


def scaled_spreads(phone: str) -> Spreads:
    """Spreads of a phone that is scaled from others, with a rule's own where no measured phone could test it."""
    facts, factor = phones()[phone], _t(3)
    found = spreads(held_out.leave_one_phone_out(), of_phone)
    same_gpu = any(phones()[p].gpu == facts.gpu for p in NEAREST[phone].gpu)
    cpu = a73_spread() * factor if facts.slow_big_core == "A73" else 0.0
    gpu = 0.0 if same_gpu else gpu_rule_spread() * factor
    rules = {"cpu": cpu, "gpu": gpu}
    both = float(np.hypot(cpu, gpu))
    return {name: float(np.hypot(value, rules.get(name, both))) for name, value in found.items()}


def shifted_errors() -> dict[str, Quantity]:
    """What a condition adds: errors over the study's Table 3, each network by a fit to the others."""
    rows = conditions.leave_one_model_out()
    logs = [float(np.log1p(e)) for _, errors in rows for e in errors]
    return _quantities({"all": _rms(logs) * _t(len(rows) - 1)}, "arXiv 2405.01851 table 3, leave one network out")


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


def _inside(errors: Iterable[CellError], widths: Spreads) -> list[bool]:
    """Which held-out cells lie inside the interval that errors of other cells give."""
    planned = [e for e in errors if strategy_class(e.cell) in PLAN_CLASS]
    return [abs(e.log_error) <= widths[PLAN_CLASS[strategy_class(e.cell)]] for e in planned]


def nested_seen() -> list[bool]:
    """Coverage for networks seen on other phones: widths come from fits that saw nothing of the cell either."""
    inside = []
    for pair in held_out.pairs():
        widths = spreads(held_out.leave_one_pair_out(without=(pair,)), of_pair)
        inside += _inside(held_out.of_pair_alone(pair), widths)
    return inside


def nested_unseen() -> list[bool]:
    """The same for unseen networks: widths from the other networks, by fits that saw neither."""
    inside = []
    for model in MODELS:
        hidden = tuple((p, m) for p, m in held_out.pairs() if m == model)
        others = [e for m in MODELS if m != model for e in held_out.of_model(m, without=hidden)]
        inside += _inside(held_out.of_model(model), spreads(others, of_network))
    return inside


def nested_scaled() -> list[bool]:
    """The same for scaled phones: widths from the other phones' errors (whose fits did see this phone)."""
    errors = held_out.leave_one_phone_out()
    inside = []
    for phone in PHONES:
        widths = spreads([e for e in errors if e.cell.device != phone], of_phone)
        inside += _inside([e for e in errors if e.cell.device == phone], widths)
    return inside
