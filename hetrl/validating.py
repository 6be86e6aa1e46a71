"""`hetrl validate`: whether a bundle, or a plan, is what it says, here and now; one line a check."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median

import msgspec

from hetrl.condition import AT_REST
from hetrl.device_bridge.host.opening import HOST, host_spec
from hetrl.device_bridge.runner.arrays import output_error
from hetrl.device_bridge.spec import builtin_names, load_spec
from hetrl.envs.setting import Setting
from hetrl.errors import PlanError, UsageError
from hetrl.export.base import Check, Moved, Tried, engines_used, find_exporter, merged, moved_words
from hetrl.export.bundle import Bundle, Manifest, Refused, open_bundle, versions_of
from hetrl.export.claims import general_claims
from hetrl.export.expected import SAME, engine_set
from hetrl.export.places import machine_of
from hetrl.export.samples import samples
from hetrl.export.timing import REPEATS, interval_ms
from hetrl.exporting import model_of
from hetrl.fidelity import allowed_error, quantizes
from hetrl.graph.single import Array
from hetrl.measurement import Measurement
from hetrl.objective import Objective
from hetrl.plan import Evidence, Expected, Plan, load_plan
from hetrl.plan_check import check_plan

ANY_ERROR = 1e9  # outputs are judged here, by their precision
SLOWER = 1.15  # than promised, on the promise's own machine: the surrogate's error on it, and a busy machine's


class Validation(msgspec.Struct, frozen=True, kw_only=True):
    """What was checked.

    :param ok: no check failed; what could not be checked is None there.
    :param moved: operators that did not run where the plan has them, and why.
    :param latency_ms: measured here; None where nothing ran.
    """

    ok: bool
    format: str | None
    checks: tuple[Check, ...]
    moved: tuple[Moved, ...] = ()
    latency_ms: float | None = None
    latency_interval_ms: tuple[float, float] | None = None
    evidence: Evidence | None = None


def validate_bundle(path: Path, repeats: int = REPEATS) -> Validation:
    """Try a bundle out in its real runtime.

    :raises MissingExtra: the runtime is not installed.
    """
    checks: list[Check] = []
    require_there(path)
    try:
        with open_bundle(path) as bundle:
            checks.append(_integrity(bundle.manifest))
            return _tried(bundle, checks, repeats)
    except Refused as error:
        name = "loads" if checks else "integrity"
        return Validation(ok=False, format=None, checks=(*checks, Check(name, False, str(error))))


def require_there(path: Path) -> None:
    """:raises UsageError: nothing is there."""
    if not path.exists() and not path.is_symlink():
        raise UsageError(f"{path} does not exist", "`hetrl train` writes plans, `hetrl export` bundles")


def _integrity(manifest: Manifest) -> Check:
    total = sum(file.bytes for file in manifest.files)
    return Check("integrity", True, f"{len(manifest.files)} files, {total} bytes, each with its sha256")


def _tried(bundle: Bundle, checks: list[Check], repeats: int) -> Validation:
    manifest = bundle.manifest
    exporter = find_exporter(manifest.format)
    refused = general_claims(exporter.carries, manifest.plan).refused
    if refused:
        raise Refused(f"the bundle holds a plan that {exporter.name} cannot carry: {refused[0].reason}")
    if not exporter.runs:
        checks += exporter.text_checks(bundle)
        return Validation(ok=_all(checks), format=exporter.name, checks=tuple(checks))
    inputs, wanted = samples(bundle)
    if not wanted or manifest.tolerance != exporter.tolerance(
        manifest.plan, quantized=exporter.quantized(bundle.folder)
    ):
        raise Refused("the bundle has no outputs, or a tolerance of its own", "export the plan again")
    tried = exporter.load_and_run(bundle, inputs, repeats)
    checks += [
        Check(
            "loads", True, ", ".join(f"{name} {version}" for name, version in versions_of(exporter.packages).items())
        ),
        _outputs(tried, wanted, manifest.tolerance),
        tried.placement,
    ]
    checks += [_moved(tried)] if tried.moved else []
    latency_ms, interval = median(tried.latency_ms), interval_ms(tried.latency_ms)
    checks.append(_latency(manifest, latency_ms, interval, bool(tried.moved)))
    return Validation(
        ok=_all(checks),
        format=exporter.name,
        checks=tuple(checks),
        moved=tried.moved,
        latency_ms=latency_ms,
        latency_interval_ms=interval,
        evidence=Evidence.MEASURED,
    )


def _outputs(tried: Tried, wanted: dict[str, Array], tolerance: float) -> Check:
    error = output_error(tried.outputs, wanted)
    return Check("outputs", error <= tolerance, f"off by {error:.2g} of the largest value, allowed are {tolerance:g}")


def _moved(tried: Tried) -> Check:
    """What is not here is no fault of the bundle; what a device that is here refused is said as well."""
    return Check("moved", None, "; ".join(moved_words(moved) for moved in merged(tried.moved)))


def _latency(manifest: Manifest, latency_ms: float, interval: tuple[float, float] | None, moved: bool) -> Check:
    here = f"measured {latency_ms:.4g} ms here{_range(interval)}"
    expected = manifest.expected
    if expected is None:
        return Check("latency", None, f"{here}; the bundle promises nothing")
    promised = f"promised {expected.latency_ms:.4g} ms, {expected.evidence.value}, on {manifest.plan.device}"
    reason = _incomparable(manifest, expected, moved)
    if reason is not None:
        return Check("latency", None, f"{here}; {promised}, which cannot be held against it: {reason}")
    low, _ = interval or (latency_ms, latency_ms)
    handing_ms = find_exporter(manifest.format).handing_ms * len(manifest.plan.segments)
    handing_ms = min(handing_ms, expected.latency_ms)  # a promise of next to nothing is not kept by it
    more = f" and {handing_ms:.3g} ms" if handing_ms else ""
    allowed = f"up to {100 * SLOWER - 100:.0f} %{more} above that is allowed"
    keeps = low <= expected.latency_ms * SLOWER + handing_ms
    hint = "" if keeps else "; `hetrl doctor` says what else runs here"
    return Check("latency", keeps, f"{here}; {promised}; {allowed}{hint}")


def _range(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.4g} to {interval[1]:.4g})"


def _incomparable(manifest: Manifest, expected: Expected, moved: bool) -> str | None:
    exporter, engines = find_exporter(manifest.format), engines_used(manifest.plan)
    if manifest.plan.device != HOST:
        return "this is another device"
    if manifest.machine != machine_of(host_spec()):
        return "this is another computer"
    if moved:
        return "operators ran elsewhere"
    if not exporter.engines.issuperset(engines):
        return f"that is in {' and '.join(engines)}"
    if expected.condition != str(AT_REST):
        return f"that is under {expected.condition}, and a bundle runs here as under {AT_REST}"
    return None


def validate_plan(
    plan_file: Path,
    model: str | Path | None = None,
    device: str | None = None,
    *,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    seeded_weights: int | None = None,
) -> Validation:
    """Replay a plan on its device, or on the one that is named: does it fit, run, and do what it promised?

    :raises HetrlError: the model or the device is not to be had.
    """
    checks: list[Check] = []
    require_there(plan_file)
    try:
        plan = load_plan(plan_file)
        checks.append(Check("integrity", True, f"{plan.schema}, {len(plan.segments)} segments"))
        graph = model_of(plan, model, input_shapes)
        check_plan(plan, graph)
        checks.append(Check("fits the model", True, f"{graph.name}, {len(graph.nodes)} operators"))
    except PlanError as error:
        name = "fits the model" if checks else "integrity"
        return Validation(ok=False, format=None, checks=(*checks, Check(name, False, str(error))))
    named = str(model) if model is not None else plan.model.name
    engine = None if device is not None and device != plan.device else _engine_of(plan, device)
    condition = None if plan.expected is None else plan.expected.condition
    setting = Setting.of(
        named,
        device or plan.device,
        engine=engine,
        condition=condition,
        objective=Objective(max_output_error=ANY_ERROR),
        input_shapes=input_shapes,
        seeded_weights=seeded_weights,
    )
    with setting.device:
        try:
            measured = setting.device.measure(plan, setting.condition)
        except PlanError as error:
            checks.append(Check("fits the device", False, str(error)))
            return Validation(ok=False, format=None, checks=tuple(checks))
    return _replayed(plan, checks, measured, setting.device.describe().id, quantized=quantizes(graph))


def _engine_of(plan: Plan, device: str | None) -> str | None:
    """The engine set of a device file that the plan was made in; a real device has one of everything."""
    name = device or plan.device
    if name not in builtin_names() and not Path(name).exists():
        return None
    try:
        return engine_set(plan, load_spec(name))
    except PlanError:
        return None


def _replayed(plan: Plan, checks: list[Check], measured: Measurement, device: str, *, quantized: bool) -> Validation:
    if measured.latency_ms is None:
        reason = measured.error.message if measured.error else ""
        checks.append(Check("runs", False, reason))
        return Validation(ok=False, format=None, checks=tuple(checks))
    checks.append(Check("runs", True, measured.evidence.value))
    if measured.output_error is not None:
        precisions = {name.split("/")[2] for name in plan.processors}
        allowed = allowed_error(precisions, quantized=quantized)
        error = measured.output_error
        detail = f"off by {error:.2g} of the largest value, allowed are {allowed:g}"
        checks.append(Check("outputs", error <= allowed, detail))
    checks.append(_fallbacks(measured))
    interval = measured.latency_interval_ms
    checks.append(_promise(plan, measured, device))
    return Validation(
        ok=_all(checks),
        format=None,
        checks=tuple(checks),
        latency_ms=measured.latency_ms,
        latency_interval_ms=interval,
        evidence=measured.evidence,
    )


def _fallbacks(measured: Measurement) -> Check:
    if not measured.fallbacks:
        return Check("placement", True, "every operator where the plan has it")
    first = measured.fallbacks[0]
    return Check("placement", False, f"{len(measured.fallbacks)} operators fell back: {first.node}: {first.reason}")


def _promise(plan: Plan, measured: Measurement, device: str) -> Check:
    latency_ms, expected = measured.latency_ms or 0.0, plan.expected
    low, high = measured.latency_interval_ms or (latency_ms, latency_ms)
    here = f"{measured.evidence.value} {latency_ms:.4g} ms{_range(measured.latency_interval_ms)}"
    if expected is None:
        return Check("latency", None, f"{here}; the plan promises nothing")
    promised = f"promised {expected.latency_ms:.4g} ms, {expected.evidence.value}"
    if device != plan.device:
        return Check("latency", None, f"{here} on {device}; {promised} on {plan.device}, which is another device")
    if measured.evidence is not Evidence.MEASURED:  # a device file that was fitted anew says something else
        close = abs(latency_ms - expected.latency_ms) <= SAME * latency_ms
        return Check("latency", close or low <= expected.latency_ms <= high, f"{here}; {promised}")
    detail = f"{here}; {promised}; up to {100 * SLOWER - 100:.0f} % above that is allowed"
    return Check("latency", low <= expected.latency_ms * SLOWER, detail)


def _all(checks: list[Check]) -> bool:
    return all(check.ok is not False for check in checks)
