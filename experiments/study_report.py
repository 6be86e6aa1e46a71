"""docs/study.md from what the other parts of the study found."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from study_bench import TOLERANCE, Claim, Finding, Verdict, facts, pct
from study_tables import Layers, Table2Found, Table3Found, table_2_memory

from hetrl.optimize.fusion import Decision

INTRO = (
    "Made by `python experiments/study.py --write`. The study is arXiv 2405.01851v1; its figures are pictures, so that "
    "only what its text says of them can be compared. Every number under *ours* is computed when the script runs; none "
    "was measured on a phone. What is fitted to the very numbers that it is compared with is named."
)
RULES = (
    f"A number holds if ours is within a factor of {TOLERANCE} of it, a range if all of ours lie in it, widened by the "
    "same factor at both ends; of growths the latency ratios are compared. The surrogate's held-out errors are about "
    "that large.",
    "An order (fastest, fewer, more) holds if it is true in every case that the claim names.",
    f"That something must be considered holds if leaving it out costs more than {pct(TOLERANCE - 1)} of latency in a "
    "case.",
    f"A row of Table 3 holds if the mean absolute held-out error of its shifted cells is at most {pct(TOLERANCE - 1)}.",
    "What agrees with a number that it was fitted to holds *by fit*, which shows nothing.",
    "What the study does not tell enough of cannot be tested.",
)
TABLE_2 = (
    "Latency as a factor of the baseline's. The baseline is unfused on the CPU: `mace` and `tflite` with four threads, "
    "and TFLite with one, as nn-Meter predicts it. CoDL shares operators under `mace` alone. Pruning takes 0.3 of the "
    "channels, low rank factors every window, fusion is DNNFusion's. All of it is predicted."
)
TABLE_3 = (
    "Published / ours in ms. The device is not named; d1 is assumed. Ours is the shipped fit, which saw these cells "
    "(six numbers for 24 of them, one for sigma0); the held-out errors are those of fits that did not see the model, "
    "from the published sigma0 on. See docs/conditions.md."
)
LAYERS = (
    "On d1 under `mace`, predicted. A grouping in brackets has other kernels than the engine that was measured. "
    "DNNFusion's pairs that need a profile stay unfused. The arena holds the tensors between fusion groups, greedily "
    "by size; the bound is what is alive at once. *Saved* is what reuse over frames and layers takes from CoDL's plan."
)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return [*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows), ""]


def filled(text: str) -> list[str]:
    return [*textwrap.wrap(text, 120, break_on_hyphens=False), ""]


def bullets(entries: Iterable[str]) -> list[str]:
    lines = [
        textwrap.fill(f"- {text}", 120, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
        for text in entries
    ]
    return [*lines, ""] if lines else []


def errata() -> tuple[str, ...]:
    """Both errata; the first is what a check of every row's printed speedup finds."""
    base = facts().table2[0]
    found = []
    for row in facts().table2:
        taken = 100 * (1 - row.latency_ms / base.latency_ms)
        if row.speedup_pct is not None and abs(taken - row.speedup_pct) > 0.1:
            found.append(
                f"Table 2, {row.method}: the printed speedup of {row.speedup_pct} % is the share of the latency that "
                f"is left ({row.latency_ms} of {base.latency_ms} ms); taken away are {taken:.1f} %, as the other rows "
                "count."
            )
    found.append(
        f"Table 2, baseline: {base.accuracy_pct} % is no ImageNet top-1 of ResNet-18, which is about 69.8 %; the data "
        "set is not named."
    )
    return tuple(found)


def inconsistencies() -> list[str]:
    """What of Table 2 no model can give at once; reported, not fitted."""
    rows = {row.method: row for row in facts().table2}
    ms = {name: row.latency_ms for name, row in rows.items()}
    factor = {name: value / ms["baseline"] for name, value in ms.items()}
    last, base = facts().table2[-1], ms["baseline"]
    both = factor["codl"] * factor["low_rank"]
    three = factor["codl"] * factor["pruning"] * factor["fusion"]
    return [
        f"(a) CoDL and low rank: the product of their factors is {both:.3f} ({both * base:.0f} ms), the table has "
        f"{factor['codl+low_rank']:.3f} ({ms['codl+low_rank']:.0f} ms). CoDL takes {base - ms['codl']:.0f} ms from the "
        f"whole network and {ms['low_rank'] - ms['codl+low_rank']:.0f} ms from one with less work.",
        f"(b) The last row: the product is {three:.3f} ({three * base:.0f} ms), the table has "
        f"{last.latency_ms / base:.3f} ({last.latency_ms:.0f} ms). Fusion takes {base - ms['fusion']:.0f} ms alone and "
        f"{ms['codl+pruning'] - last.latency_ms:.0f} ms here; the accuracy, {last.accuracy_pct} %, is above that of "
        f"its own pruning, {rows['pruning'].accuracy_pct} %.",
        f"(c) The baseline's accuracy of {rows['baseline'].accuracy_pct} % (second erratum).",
        f"(d) {base:.0f} ms is what one CPU thread takes; CoDL would take far more away from that than "
        f"{pct(1 - factor['codl'])}.",
    ]


def word(finding: Finding) -> str:
    return finding.verdict.value + (" by fit" if finding.by_fit and finding.verdict is Verdict.HOLDS else "")


def claims_text(found: Sequence[tuple[Claim, Finding]]) -> list[str]:
    rows = [(c.id, c.text, c.published, f.ours, word(f)) for c, f in found]
    held, others = ([f for _, f in found if (f.verdict is Verdict.HOLDS) == good] for good in (True, False))
    return [
        "## Claims", "",
        *table(("claim", "text", "published", "ours", "verdict"), rows),
        "### What would have to be true of the phone for those that do not hold", "",
        *bullets(f"{f.id}: {f.why}" for f in others),
        "### To know of those that hold", "",
        *bullets(f"{f.id}: {f.why}" for f in held if f.why),
        "### What is fitted, and to what", "",
        *bullets(f"{f.id}: {f.fitted}" for _, f in found if f.fitted),
    ]  # fmt: skip


def _memory_word(method: str, said: Verdict) -> str:
    fitted = said is Verdict.HOLDS and ("low_rank" in method or "pruning" in method)
    return said.value + (" by fit" if fitted else "")


def table_2_text(found: Sequence[Table2Found]) -> list[str]:
    sizes = table_2_memory()
    latencies = [
        (f.row.method, f.row.latency_ms, f"{f.published_factor:.3f}", f.finding.ours, word(f.finding)) for f in found
    ]
    memory = [
        (row.method, row.memory_mb, f"{size:.2f}", _memory_word(row.method, said), f"{arena:.1f}",
         f"{row.accuracy_pct} %", f"{accuracy:.2f} %")
        for row, size, arena, said, accuracy in sizes
    ]  # fmt: skip
    return [
        "## Table 2: ResNet-18 on d1", "",
        *filled(TABLE_2),
        *table(("method", "published, ms", "published factor", "ours", "verdict"), latencies),
        *bullets(f"{f.row.method}: {f.finding.why}" for f in found if f.finding.why),
        "Fitted:", "",
        *bullets(f"{f.row.method}: {f.finding.fitted}" for f in found if f.finding.fitted),
        *table(
            ("method", "published, MB", "weights, MB", "verdict", "activations, MB", "published accuracy", "ours"),
            memory,
        ),
        *filled(
            "The published memory is that of the weights; activations are not in it. Pruning's and low rank's are "
            "fitted, and so is their accuracy (`hetrl.accuracy`, `hetrl.optimize.low_rank`), which is predicted for "
            "any other network or share. For the last row the phone would have to hold "
            f"its weights in two bytes each ({sizes[-1][1] / 2:.2f} MB): memory allocation reuses activations "
            f"({sizes[-1][2]:.1f} instead of {sizes[-2][2]:.1f} MB), and no weights."
        ),
        "Inconsistent in the table itself, reported and not fitted:", "",
        *bullets(inconsistencies()),
    ]  # fmt: skip


def table_3_text(found: Sequence[Table3Found]) -> list[str]:
    rows = []
    for f in found:
        cells = [f"{p:.0f} / {o:.0f}" for p, o in zip(f.published_ms, f.ours_ms, strict=True)]
        held = " ".join(f"{100 * e:+.0f} %" for e in f.held_out)
        rows.append((f.model, f.method, *cells, held, f.verdict.value))
    header = ("model", "method", *(f"sigma{i}" for i in range(5)), "held out, sigma1 to sigma4", "verdict")
    return [
        "## Table 3: under conditions", "",
        *filled(TABLE_3),
        *table(header, rows),
        *bullets(f"{f.model}, {f.method}: {f.why}" for f in found if f.why),
    ]  # fmt: skip


def table_4_text(found: Sequence[Finding], networks: Sequence[Layers]) -> list[str]:
    def between(shares: Iterable[float]) -> str:
        low, high = min(values := list(shares)), max(values)
        return f"{100 * low:.1f} to {100 * high:.1f} %"

    return [
        "## Table 4: reuse in a video stream", "",
        *table(
            ("frames, layers", "published", "ours", "verdict", "fitted"),
            [(f.id, f.published, f.ours, word(f), f.fitted) for f in found],
        ),
        *bullets(f"{f.id}: {f.why}" for f in found if f.why),
        *filled(
            "Beside the curve there is a mechanism without a fitted number (`hetrl.optimize.reuse.stream_ms`): of each "
            "F + 1 frames the last F take the results of a plan's first L steps from the first one. On d1 under CoDL's "
            f"plans it saves {between(n.saved[0] for n in networks)} at (1, 1) and "
            f"{between(n.saved[1] for n in networks)} at (2, 2), by network. What it costs in quality is not predicted."
        ),
    ]  # fmt: skip


def layers_text(found: Sequence[Layers]) -> list[str]:
    rows = [
        (
            n.model, n.kernels[2], f"({n.kernels[0]})", f"({n.kernels[1]})",
            " / ".join(str(n.pairs.get(d, 0)) for d in Decision), *(f"{factor:.2f}" for factor in n.factors),
            *(f"{size:.1f}" for size in n.arena_mb), *(pct(share) for share in n.saved),
        )
        for n in found
    ]  # fmt: skip
    header = (
        "network", "kernels", "(unfused)", "(DNNFusion)", "pairs that fuse / profile / break", "fused / unfused, CPU",
        "GPU", "arena, MB", "bound, MB", "without reuse, MB", "saved at (1, 1)", "at (2, 2)",
    )  # fmt: skip
    return ["## Layers on top of plans", "", *filled(LAYERS), *table(header, rows)]
