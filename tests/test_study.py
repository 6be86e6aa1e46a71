"""The study's reproduction: nothing that it reports is copied from the study, and every verdict is explained."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "experiments"))  # scripts import each other as they do when they are run

import study_bench  # noqa: E402
import study_claims  # noqa: E402
import study_report  # noqa: E402
import study_summaries  # noqa: E402
import study_tables  # noqa: E402
from study import Document  # noqa: E402
from study_bench import Claim, Facts, Finding, Verdict, agrees, facts  # noqa: E402

QUICK = (
    study_claims.fig2_c, study_claims.fig3_a, study_claims.fig5_a, study_claims.fig5_b, study_claims.tab3_a,
    study_claims.tab3_b, study_claims.summary_4, study_claims.summary_5,
)  # fmt: skip


@pytest.fixture(scope="module")
def document() -> Document:
    return msgspec.json.decode((ROOT / "docs" / "study.json").read_bytes(), type=Document)


def test_every_claim_has_a_verdict(document: Document) -> None:
    assert tuple(a.claim for a in document.claims) == facts().claims and len(document.claims) == 20
    assert all(a.finding.id == a.claim.id and a.finding.ours for a in document.claims)
    counted = {v.value: sum(a.finding.verdict is v for a in document.claims) for v in Verdict}
    assert document.counts == counted
    assert document.counts[Verdict.HOLDS] >= 15


def test_what_does_not_hold_says_what_would_have_to_be_true(document: Document) -> None:
    for finding in [a.finding for a in document.claims] + [row.finding for row in document.rows]:
        assert finding.verdict is Verdict.HOLDS or finding.why.endswith("."), finding


def test_all_rows_of_the_tables(document: Document) -> None:
    assert [row.table for row in document.rows] == ["2"] * 8 + ["3"] * 6 + ["4"] * 3
    assert all(row.finding.fitted for row in document.rows if row.table == "3")


def test_both_errata_are_found() -> None:
    speedup, accuracy = study_report.errata()
    assert "48.4 %" in speedup and "51.6 %" in speedup and "memory_allocation" in speedup
    assert "76.23 %" in accuracy


def altered(known: Facts) -> Facts:
    """The facts with every number of a claim and of Table 2's latencies three times as large."""
    claims = tuple(Claim(c.id, c.text, c.published, tuple(3 * number for number in c.numbers)) for c in known.claims)
    rows = tuple(msgspec.structs.replace(row, latency_ms=3 * row.latency_ms) for row in known.table2)
    return Facts(known.source, claims, rows)


@pytest.mark.parametrize("compute", QUICK)
def test_ours_does_not_depend_on_what_is_published(
    compute: Callable[[], Finding], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = compute()
    told = altered(facts())
    for module in (study_bench, study_claims, study_summaries):
        monkeypatch.setattr(module, "facts", lambda: told)
    again = compute()
    assert again.ours == found.ours and again.fitted == found.fitted
    numbers = told.numbers(found.id)
    if numbers and found.verdict is Verdict.HOLDS:
        assert again.verdict is Verdict.FAILS


def test_table_2_does_not_depend_on_its_latencies(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(f.factors, f.finding.ours) for f in study_tables.table_2()]
    told = altered(facts())
    monkeypatch.setattr(study_tables, "facts", lambda: told)
    assert [(f.factors, f.finding.ours) for f in study_tables.table_2()] == found


@pytest.mark.parametrize(
    ("value", "published", "expected"),
    [(1.0, [1.14], True), (1.0, [1.16], False), (1.5, [1.4, 1.8], True), (2.1, [1.4, 1.8], False)],
)
def test_agreement(value: float, published: list[float], expected: bool) -> None:
    assert agrees(value, published) is expected
