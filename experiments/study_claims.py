"""The study's 20 claims: figures 2, 3 and 5; `study_figure4` has figure 4, `study_summaries` the other ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import msgspec
import numpy as np
from study_bench import (
    FIGURE_2_MODELS,
    FIGURE_2_PHONES,
    GPU_ALONE,
    MODELS,
    PHONES,
    SHARED,
    TOLERANCE,
    Claim,
    Finding,
    agrees,
    answer,
    facts,
    fastest,
    graph,
    latencies_ms,
    latency_ms,
    measured,
    pct,
    plan,
    span,
)
from study_figure4 import fig4_a, fig4_b, fig4_c, fig4_d, fig4_e
from study_summaries import summary_1, summary_2, summary_3, summary_4, summary_5, tab3_a, tab3_b

from hetrl.calibration.rows import cells
from hetrl.condition import parse_condition
from hetrl.device_bridge.spec import DeviceSpec, GpuCost, load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.support.fallback import CPU, DSP, GPU, fallback, tflite
from hetrl.support.partition import Limits
from hetrl.support.stretch import Merge, Read
from hetrl.zoo.networks import blueprint


def fig2_a() -> Finding:
    times = {m: latencies_ms("d1", m) for m in MODELS}
    won = [m for m in MODELS if fastest(times[m]) == "codl_image"]
    others = [min(v for k, v in times[m].items() if k != "codl_image") / times[m]["codl_image"] for m in won]
    in_figure = all(m in won for m in FIGURE_2_MODELS)
    ours = (
        f"fastest on {sum(m in won for m in FIGURE_2_MODELS)} of the figure's {len(FIGURE_2_MODELS)} models and on "
        f"{len(won)} of all {len(MODELS)}, {span(others)} times as fast as the next"
    )
    lost = [f"On {m} {fastest(times[m])} is faster." for m in MODELS if m not in won]
    return answer("fig2-a", ours, in_figure, " ".join(lost), _in_fit("codl_image", FIGURE_2_MODELS))


def _in_fit(strategy: str, models: Iterable[str]) -> str:
    """Which of d1's own latencies of a strategy its device file is fitted to."""
    seen = {c.model for c in cells() if (c.device, c.strategy) == ("d1", strategy)}
    known = [m for m in models if m in seen]
    return f"d1's device file, among others to CoDL's measurements of {strategy} on {', '.join(known)}" if known else ""


def fig2_b() -> Finding:
    """The type that CoDL is published with, image, against the GPU in the type that it likes, as MACE users set it."""
    wanted = facts().numbers("fig2-b")
    ratios = {m: latency_ms("d2", m, "codl_image") / _gpu_alone("d2", m) for m in FIGURE_2_MODELS}
    holds = all(agrees(r, wanted) for r in ratios.values())
    ours = f"{span(ratios.values())} (CoDL in images over the GPU in buffers, five models)"
    why = ""
    if not holds:
        factor = _unfriendly(load_spec("d2"))
        good = [x for x in np.arange(1.0, 2.51, 0.1) if all(agrees(r, wanted) for r in _ratios_d2(float(x)).values())]
        needs = (
            f"between {factor * good[0]:.1f} and {factor * good[-1]:.1f}" if good else "more than 2.5 times as large"
        )
        why = (
            f"Images would have to slow the Mali of d2 down by a factor {needs}; its file has {factor:.1f}, taken over "
            f"from d5 because nobody measured it on d2. {sum(agrees(r, wanted) for r in ratios.values())} of 5 agree "
            "as it is; that CoDL in the wrong memory type is no better than the GPU alone is seen on "
            f"{sum(r > 1 for r in ratios.values())} of 5."
        )
    return answer("fig2-b", ours, holds, why)


def _gpu_alone(phone: str, model: str) -> float:
    return min(latencies_ms(phone, model, GPU_ALONE).values())


def _unfriendly(spec: DeviceSpec) -> float:
    return next(p.cost.unfriendly_factor.value for p in spec.engine("mace").processors if isinstance(p.cost, GpuCost))


def _ratios_d2(stretch: float) -> dict[str, float]:
    """The ratios of figure 2 with d2's unfriendly factor stretched."""
    spec = load_spec("d2")
    engine = spec.engine("mace")
    processors = []
    for processor in engine.processors:
        cost = processor.cost
        if isinstance(cost, GpuCost):
            old = cost.unfriendly_factor
            new = msgspec.structs.replace(old, value=old.value * stretch)
            processor = msgspec.structs.replace(  # noqa: PLW2901 the changed one takes its place
                processor, cost=msgspec.structs.replace(cost, unfriendly_factor=new)
            )
        processors.append(processor)
    changed = msgspec.structs.replace(engine, processors=tuple(processors))
    spec = msgspec.structs.replace(spec, engines={**spec.engines, "mace": changed})
    ratios = {}
    for model in FIGURE_2_MODELS:
        on = SurrogateDevice(spec, graph(model), "mace")
        # Neither the GPU in buffers nor CoDL's plan, which is made for buffers, depends on the factor.
        took = on.measure(plan("d2", model, "codl_image"), parse_condition("cold")).latency_ms
        assert took is not None
        ratios[model] = took / _gpu_alone("d2", model)
    return ratios


def fig2_c() -> Finding:
    wanted = facts().numbers("fig2-c")
    ratios = {p: latency_ms(p, "fst", "mulayer") / _gpu_alone(p, "fst") for p in FIGURE_2_PHONES}
    holds = all(agrees(r, wanted) for r in ratios.values())
    why = []
    for phone, ratio in ratios.items():
        if not agrees(ratio, wanted):
            bound = wanted[0] / TOLERANCE if ratio < wanted[0] else wanted[1] * TOLERANCE
            change = ratio / bound
            word = f"{1 / change:.1f} times as fast" if change < 1 else f"{change:.2f} times as slow"
            why.append(f"on {phone} the GPU alone would have to be {word} as in its file, which is scaled")
    ours = ", ".join(f"{p} {r:.2f}" for p, r in ratios.items())
    return answer("fig2-c", ours, holds, _sentence(why), _in_fit("mulayer", ("fst",)))


def _sentence(parts: Iterable[str]) -> str:
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + "." if text else ""


def fig2_d() -> Finding:
    wins = Counter(fastest(latencies_ms(p, m)) for p in PHONES for m in MODELS)
    every = len(PHONES) * len(MODELS)
    ours = ", ".join(f"{policy} {count}" for policy, count in wins.most_common()) + f" of {every} pairs"
    return answer("fig2-d", ours, max(wins.values()) < every)


def fig3_a() -> Finding:
    network, one = blueprint("resnet50"), Limits(max_partitions=1)
    shares = {
        (merge, read): fallback(network, (CPU, GPU), merge, tflite(one), read).unsupported
        for merge in Merge
        for read in Read
    }
    ours = shares[Merge.BLOCK, Read.SLICE]
    return answer(
        "fig3-a",
        f"{pct(ours)} (branches that meet behind each residual block)",
        agrees(ours, facts().numbers("fig3-a")),
        f"Other readings of the unpublished network give {span((100 * s for s in shares.values()), 0)} %, by where its "
        "branches meet: see docs/support.md.",
        "no number, but of several readings of the network the nearest is taken",
    )


def fig3_b() -> Finding:
    """Networks whose branches can be cut by channels; all combinations of processors of figure 3."""
    more = less = count = 0
    networks = ("resnet18", "resnet34", "resnet50", "vgg16")
    for name in networks:
        network, delegates = blueprint(name), tflite(Limits(max_partitions=1))
        alone = fallback(network, (GPU,), Merge.BLOCK, delegates)
        for units in ((CPU, GPU), (CPU, DSP), (CPU, GPU, DSP)):
            found = fallback(network, units, Merge.BLOCK, delegates)
            count += 1
            more += found.added > 0 and found.operators > alone.operators
            less += found.unsupported > alone.unsupported
    ours = (
        f"operators are added in {more} of {count} cases, the supported share falls in {less} ({', '.join(networks)})"
    )
    return answer(
        "fig3-b", ours, more == less == count, "With a delegate that keeps all its partitions CPU and GPU lose nothing."
    )


def _drops(policy: str) -> float:
    found = measured("d1", "vgg16", policy).frame_drop_rate
    assert found is not None
    return found


def fig5_a() -> Finding:
    (least,) = facts().numbers("fig5-a")
    rate = _drops("mace_gpu_buffer")
    return answer(
        "fig5-a",
        f"{pct(rate)}; in images {pct(_drops('mace_gpu_image'))}",
        rate > least,
        "The app's 4 ms of GPU time a frame at 60 Hz and 16 queued kernels are assumed, not fitted.",
    )


def fig5_b() -> Finding:
    alone = {policy: _drops(policy) for policy in GPU_ALONE}
    shared = {policy: _drops(policy) for policy in SHARED}
    ours = ", ".join(f"{policy} {pct(rate)}" for policy, rate in (shared | alone).items())
    return answer("fig5-b", ours, max(shared.values()) < min(alone.values()))


CLAIMS: tuple[Callable[[], Finding], ...] = (
    fig2_a, fig2_b, fig2_c, fig2_d, fig3_a, fig3_b, fig4_a, fig4_b, fig4_c, fig4_d, fig4_e, fig5_a, fig5_b,
    tab3_a, tab3_b,
    summary_1, summary_2, summary_3, summary_4, summary_5,
)  # fmt: skip


def claims() -> list[tuple[Claim, Finding]]:
    """All 20 claims with their findings, in the order of the facts."""
    found = {f.id: f for f in (compute() for compute in CLAIMS)}
    return [(claim, found[claim.id]) for claim in facts().claims]
