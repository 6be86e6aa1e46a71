"""The study again: its 20 claims and every row of its Tables 2, 3 and 4, published beside computed.

python experiments/study.py            print docs/study.md
python experiments/study.py --write    write docs/study.json, docs/study.md and docs/study.png

`study_bench` has the facts and the rules, `study_claims` and `study_summaries` the claims, `study_tables` the tables,
`study_report` the text.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
from study_bench import FIGURE_2_MODELS, FIGURE_2_PHONES, SIX, Claim, Finding, Verdict, facts, latencies_ms
from study_claims import claims
from study_report import (
    INTRO,
    RULES,
    bullets,
    claims_text,
    errata,
    filled,
    inconsistencies,
    layers_text,
    table_2_text,
    table_3_text,
    table_4_text,
)
from study_summaries import cap_curve
from study_tables import Table2Found, Table3Found, layers, table_2, table_3, table_4

DOCS = Path(__file__).resolve().parent.parent / "docs"
WORDS = ("hold", "fail", "cannot be tested")
COLOURS = dict(zip(SIX, ("C0", "C3", "C1", "C4", "C5", "C2"), strict=True))


class Answer(msgspec.Struct, frozen=True):
    """A claim with what was found of it."""

    claim: Claim
    finding: Finding


class Row(msgspec.Struct, frozen=True):
    """A row of a published table with what was found of it."""

    table: str
    finding: Finding


class Document(msgspec.Struct, frozen=True):
    """docs/study.json."""

    source: str
    rules: tuple[str, ...]
    counts: dict[str, int]
    claims: tuple[Answer, ...]
    rows: tuple[Row, ...]
    errata: tuple[str, ...]
    inconsistencies: tuple[str, ...]


def rows_of(second: Sequence[Table2Found], third: Sequence[Table3Found], fourth: Sequence[Finding]) -> tuple[Row, ...]:
    """The three tables' rows."""
    return (
        *(Row("2", f.finding) for f in second),
        *(Row("3", f.finding) for f in third),
        *(Row("4", f) for f in fourth),
    )


def plot(path: Path, second: Sequence[Table2Found], third: Sequence[Table3Found]) -> None:
    """Figure 2's bars, Table 2's factors, Table 3's cells and the curve of caps; nothing without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 3, figsize=(15, 8))
    for panel, phone in zip(panels[0], FIGURE_2_PHONES, strict=True):
        for index, policy in enumerate(SIX):
            heights = [latencies_ms(phone, m)[policy] for m in FIGURE_2_MODELS]
            places = [i + (index - 2.5) * 0.14 for i in range(len(heights))]
            panel.bar(places, heights, 0.14, color=COLOURS[policy], label=policy)
        panel.set(title=f"Figure 2's strategies on {phone}", yscale="log", ylabel="ms")
        panel.set_xticks(range(len(FIGURE_2_MODELS)), FIGURE_2_MODELS)
    panels[0][0].legend(fontsize=7)
    factors, cells, caps = panels[1]
    places = list(range(len(second)))
    factors.barh([p - 0.2 for p in places], [f.published_factor for f in second], 0.4, label="published")
    factors.barh([p + 0.2 for p in places], [f.factors["mace"] for f in second], 0.4, label="ours, mace")
    factors.set_yticks(places, [f.row.method.replace("memory_allocation", "arena") for f in second], fontsize=7)
    factors.set(title="Table 2: latency / baseline")
    factors.legend(fontsize=8)
    for number in range(5):
        x, y = [f.published_ms[number] for f in third], [f.ours_ms[number] for f in third]
        cells.scatter(x, y, s=16, label=f"sigma{number}")
    cells.plot([160, 800], [160, 800], c="0.6", lw=1)
    cells.set(title="Table 3", xlabel="published, ms", ylabel="ours, ms")
    cells.legend(fontsize=8)
    for policy in ("mace_gpu_image", "codl_image"):
        curve = cap_curve(policy)
        caps.plot([c[1] for c in curve], [100 * c[2] for c in curve], "o-", c=COLOURS[policy], label=policy)
    caps.set(title="GPU capped at 1 to 0.2, VGG-16 on d1", xlabel="ms", ylabel="frames dropped, %")
    caps.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=70, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write docs/study.json, .md and .png")
    write = parser.parse_args().write
    found = claims()
    second, third, fourth, networks = table_2(), table_3(), table_4(), layers()
    counts = Counter(f.verdict.value for _, f in found)
    told = ", ".join(f"{counts[v.value]} {word}" for v, word in zip(Verdict, WORDS, strict=True))
    by_fit = sum(f.by_fit and f.verdict is Verdict.HOLDS for _, f in found)
    text = "\n".join([
        "# The study again", "", *filled(INTRO),
        "## Rules", "", "The same for all claims.", "", *bullets(RULES),
        f"Of {len(found)} claims {told}; {by_fit} of those that hold do so by fit.", "",
        "![Figures](study.png)", "",
        *claims_text(found),
        *table_2_text(second), *table_3_text(third), *table_4_text(fourth, networks), *layers_text(networks),
        "## Errata of the study", "", *bullets(errata()),
    ])  # fmt: skip
    print(text)
    if write:
        document = Document(
            source=facts().source,
            rules=RULES,
            counts={v.value: counts[v.value] for v in Verdict},
            claims=tuple(Answer(c, f) for c, f in found),
            rows=rows_of(second, third, fourth),
            errata=errata(),
            inconsistencies=tuple(inconsistencies()),
        )
        (DOCS / "study.json").write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
        (DOCS / "study.md").write_text(text, encoding="utf-8")
        plot(DOCS / "study.png", second, third)


if __name__ == "__main__":
    main()
