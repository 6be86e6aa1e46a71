"""How a plan says that its model is compressed."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetrl.compress.channels import kept_channels, pruned
from hetrl.compress.planned import compressed_graph, group_ratios, shares_gone
from hetrl.compress.stages import stages
from hetrl.compression import NO_COMPRESSION, Compression, parse_compression
from hetrl.errors import HetrlError, PlanError
from hetrl.zoo.resolve import resolve_model

RATIOS = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75]), min_size=1, max_size=6).map(tuple)


@given(RATIOS, st.integers(1, 64), st.sampled_from([None, 0.25, 0.5]))
def test_words_say_all_of_it(ratios: tuple[float, ...], multiple: int, keep: float | None) -> None:
    one = Compression.of(ratios, multiple)
    one = one if keep is None else msgspec.structs.replace(one, low_rank=keep)
    assert parse_compression(str(one)) == one


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prun=0.3", "did you mean 'prune'"),
        ("prune", "holds no number"),
        ("prune=", "holds no number"),
        ("prune=nan", "holds no number"),
        ("prune=1.5", "not in [0, 1)"),
        ("prune=0.3,prune=0.4", "given twice"),
        ("prune=0.3,multiple=2.5", "multiples of 2.5"),
        ("prune=0.3,multiple=8/16", "takes one number"),
        ("prune=0.3,multiple=1e9", "multiples of 1e+09"),
        ("multiple=8", "is for pruning"),
        ("low-rank=1", "not between 0 and 1"),
        ("", "compression"),
    ],
)
def test_bad_words_are_explained(text: str, told: str) -> None:
    with pytest.raises(HetrlError) as caught:
        parse_compression(text)
    assert told in str(caught.value)


@given(RATIOS, st.integers(1, 64))
def test_what_means_the_same_is_written_the_same(ratios: tuple[float, ...], multiple: int) -> None:
    one = Compression.of(ratios, multiple)
    assert msgspec.json.decode(msgspec.json.encode(one), type=Compression) == one
    assert one.prunes is any(ratios) and (one == NO_COMPRESSION) is not any(ratios)
    assert set(one.ratios) == set(ratios) and len(one.ratios) in (1, len(ratios))
    assert one.multiple == (multiple if any(ratios) else 4)


def test_a_plain_compression_is_short() -> None:
    assert msgspec.json.encode(Compression(0.3)) == b'{"prune_ratio":0.3}'
    assert str(Compression.of((0.1, 0.5), 16)) == "prune=0.1/0.5,multiple=16"


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"prune_ratio": 1.0}, "compression.prune_ratio"),
        ({"prune_ratio": -0.1}, "compression.prune_ratio"),
        ({"prune_ratio": math.nan}, "compression.prune_ratio"),
        ({"stage_ratios": (0.1, 1.0)}, "compression.stage_ratios[1]"),
        ({"stage_ratios": (0.1, 0.1)}, "compression.stage_ratios"),
        ({"stage_ratios": ()}, "compression.stage_ratios"),
        ({"prune_ratio": 0.2, "stage_ratios": (0.1, 0.2)}, "compression.stage_ratios"),
        ({"prune_ratio": 0.2, "channel_multiple": 0}, "compression.channel_multiple"),
        ({"prune_ratio": 0.2, "channel_multiple": 2048}, "compression.channel_multiple"),
        ({"prune_ratio": 0.2, "artefact_sha256": "../x"}, "compression.artefact_sha256"),
        ({"artefact_sha256": 64 * "a"}, "compression.artefact_sha256"),
        ({"low_rank": 1.0}, "compression.low_rank"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, object], where: str) -> None:
    with pytest.raises(PlanError) as caught:
        Compression(**fields)  # type: ignore[arg-type]
    assert caught.value.field == where
    with pytest.raises((PlanError, msgspec.ValidationError)):
        msgspec.json.decode(msgspec.json.encode(fields), type=Compression)


def test_every_stage_loses_its_own_share() -> None:
    graph = resolve_model("resnet18")
    parts = stages(graph)
    ratios = (0.0, 0.5, 0.25, 0.5)
    one = Compression.of(ratios, 8)
    smaller = compressed_graph(graph, one)
    assert smaller == pruned(graph, group_ratios(graph, one), 8)
    kept = kept_channels(graph, group_ratios(graph, one), 8)
    for stage, ratio, gone in zip(parts, ratios, shares_gone(graph, one), strict=True):
        assert all(kept[i] == graph.channels.groups[i].size * (1 - ratio) for i in stage.groups)
        assert gone == pytest.approx(ratio)
    assert smaller.macs < graph.macs and compressed_graph(graph, NO_COMPRESSION) is graph


def test_a_wrong_number_of_stages_is_named() -> None:
    with pytest.raises(PlanError, match="resnet18 has 4 stages"):
        compressed_graph(resolve_model("resnet18"), Compression.of((0.1, 0.2)))
