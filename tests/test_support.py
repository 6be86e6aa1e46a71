"""Support rules, TFLite's operators and partitions, stretched networks and what of them falls back."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetrl.device_bridge.spec import load_spec
from hetrl.errors import UnknownName, UsageError
from hetrl.graph.reader import graph_from_model
from hetrl.support.agreement import agreements
from hetrl.support.fallback import CPU, DSP, GPU, Delegate, branch_of, count, fallback, tflite
from hetrl.support.hub import predicted_left, profiles, wrapped
from hetrl.support.lowering import RuntimeOp, lower
from hetrl.support.networks import network
from hetrl.support.partition import Limits, kept, partitions
from hetrl.support.rules import rule_set, rule_sets
from hetrl.support.stretch import BRANCH, Merge, Read, parameters, regions, stretch
from hetrl.zoo.blueprint import Blueprint
from hetrl.zoo.builder import Builder
from hetrl.zoo.networks import blueprint

ONE, ALL = Limits(max_partitions=1), Limits()


def names(network: Blueprint) -> list[str]:
    return [op.name for op in lower(graph_from_model(network.model, name="small"))]


def two_blocks(groups: int = 1) -> Blueprint:
    """Two convolutions at 16x16, then a residual block at 8x8, a mean and a classifier."""
    net = Builder("small")
    x = net.input("data", (1, 3, 16, 16))
    x = net.activation(net.conv(x, "a", 16, 3), "a.relu")
    x = net.activation(net.conv(x, "b", 16, 3, stride=2, groups=groups), "b.relu")
    y = net.activation(net.batch_norm(net.conv(x, "c", 16, 3, bias=False), "c.bn"), "c.relu")
    x = net.activation(net.add(net.conv(y, "d", 16, 1), x, "sum"), "sum.relu")
    return net.finish(net.gemm(net.flatten(net.global_pool(x, "mean"), "flat"), "logits", 10))


class TestRules:
    def test_lists_say_what_their_sources_say(self) -> None:
        gpu = rule_set("tflite_gpu")
        assert gpu.refusal("CONV_2D") is None
        assert gpu.refusal("SPLIT") == "no parser at that commit"
        assert gpu.refusal("TOPK") == "not in the list"
        assert rule_set("mace_gpu").onnx_refusal("Slice") == "only on the CPU"
        assert rule_set("mace_gpu").onnx_refusal("Concat") is None
        assert rule_set("qnn_htp").onnx_refusal("Loop") == "no control flow"
        assert rule_set("tflite_gpu").onnx_refusal("NonZero") == "not in the list"

    def test_an_onnx_type_is_taken_if_any_of_its_operators_is(self) -> None:
        assert rule_set("tflite_gpu").refusal("PADV2") is not None
        assert rule_set("tflite_gpu").onnx_refusal("Pad") is None

    def test_grouped_convolutions_leave_the_dsp_only(self) -> None:
        assert rule_set("qnn_hvx").refusal("GROUPED_CONV_2D") is not None
        assert rule_set("qnn_hvx").refusal("DEPTHWISE_CONV_2D") is None
        assert rule_set("tflite_gpu").refusal("GROUPED_CONV_2D") is None

    def test_every_row_has_a_source_and_every_refusal_a_reason(self) -> None:
        for rules in rule_sets().values():
            for verdict in rules.verdicts.values():
                assert verdict.source
                assert verdict.takes or verdict.note, verdict

    def test_an_unknown_list_is_named(self) -> None:
        with pytest.raises(UnknownName, match="tflite_gpu"):
            rule_set("tflite_gup")

    def test_device_files_are_compared_type_by_type(self) -> None:
        found = {(a.device, a.rules): a for a in agreements()}
        refused = load_spec("d4").engine("tflite").processors[2].unsupported
        d4 = found["d4", "qnn_htp"]
        assert d4.processor.startswith("dsp/")
        assert set(d4.refused_but_listed) <= set(refused)
        assert "Gather" in d4.refused_but_listed  # the list takes it with positive indices


class TestLowering:
    def test_fuses_folds_and_pads(self) -> None:
        assert names(two_blocks()) == [
            "CONV_2D", "PAD", "CONV_2D", "CONV_2D", "CONV_2D", "ADD", "MEAN", "RESHAPE", "FULLY_CONNECTED",
        ]  # fmt: skip

    def test_groups_have_names_of_their_own(self) -> None:
        assert names(two_blocks(groups=4))[2] == "GROUPED_CONV_2D"
        assert names(two_blocks(groups=16))[2] == "DEPTHWISE_CONV_2D"

    def test_normalization_before_a_convolution_stays(self) -> None:
        net = Builder("pre")
        x = net.activation(net.batch_norm(net.input("x", (1, 4, 8, 8)), "bn"), "relu")
        assert names(net.finish(net.conv(x, "conv", 4, 1))) == ["MUL", "ADD", "CONV_2D"]

    def test_a_relu_that_others_bypass_is_not_fused(self) -> None:
        net = Builder("twice")
        x = net.conv(net.input("x", (1, 4, 8, 8)), "conv", 4, 1)
        assert names(net.finish(net.add(net.activation(x, "relu"), x, "sum"))) == ["CONV_2D", "RELU", "ADD"]

    def test_padding_of_a_pool_needs_zeros_to_be_harmless(self) -> None:
        for activation, pad in (("Relu", "PAD"), ("Tanh", "PADV2")):
            net = Builder("pool")
            x = net.activation(net.conv(net.input("x", (1, 4, 8, 8)), "conv", 4, 1), "act", activation)
            assert pad in names(net.finish(net.max_pool(x, "pool", 3, 2, pad=1)))

    def test_five_dimensions_have_a_name_that_no_list_has(self) -> None:
        text = """<ir_version: 8, opset_import: ["" : 17]> shuffle (float[1,4,2,2] x) => (float[1,2,2,2,2] y)
                  <int64[5] shape = {1, 2, 2, 2, 2}>
                  { r = Reshape(x, shape) y = Transpose<perm = [0, 2, 1, 3, 4]>(r) }"""
        ops = lower(graph_from_model(onnx.parser.parse_model(text), name="shuffle"))
        assert [op.name for op in ops] == ["RESHAPE_5D", "TRANSPOSE_5D"]
        assert rule_set("tflite_hexagon").refusal("TRANSPOSE_5D") == "not in the list"

    def test_reads_point_backwards_at_producers(self) -> None:
        ops = lower(graph_from_model(two_blocks().model, name="small"))
        assert [op.reads for op in ops] == [(), (0,), (1,), (2,), (3,), (2, 4), (5,), (6,), (7,)]

    @pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet101", "wide_resnet50_2", "resnext50_32x4d"])
    def test_counts_what_ai_hub_counts(self, name: str) -> None:
        counted = {p.total for p in profiles() if p.network == name}
        assert counted == {len(wrapped(name))}


class TestPartitions:
    CHAIN = tuple(RuntimeOp(str(i), str(i), (i - 1,) if i else ()) for i in range(6))

    def test_a_refused_operator_cuts_a_chain(self) -> None:
        taken = [True, True, False, True, True, True]
        assert partitions(self.CHAIN, taken) == [(0, 1), (3, 4, 5)]
        assert kept(self.CHAIN, taken, ONE) == {3, 4, 5}
        assert kept(self.CHAIN, taken, Limits(min_nodes=3)) == {3, 4, 5}
        assert kept(self.CHAIN, taken, ALL) == {0, 1, 3, 4, 5}

    def test_a_branch_beside_the_refused_one_stays_in_the_piece(self) -> None:
        ops = (
            RuntimeOp("0", "0", ()), RuntimeOp("1", "1", (0,)), RuntimeOp("2", "2", (0,)),
            RuntimeOp("3", "3", (2,)), RuntimeOp("4", "4", (1, 3)),
        )  # fmt: skip
        assert partitions(ops, [True, False, True, True, True]) == [(0, 2, 3), (4,)]

    @given(st.data())
    def test_pieces_are_what_is_taken_and_run_one_after_the_other(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, 12))
        ops = [
            RuntimeOp(str(i), str(i), tuple(sorted(data.draw(st.sets(st.integers(0, i - 1), max_size=2)))) if i else ())
            for i in range(count)
        ]
        taken = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
        found = partitions(ops, taken)
        assert sorted(i for piece in found for i in piece) == [i for i in range(count) if taken[i]]
        reach: list[set[int]] = []
        for op in ops:
            reach.append(set(op.reads).union(*(reach[r] for r in op.reads)))
        for piece in found:  # nothing between two members of a piece lies outside it
            for i in piece:
                assert not any(j not in piece and reach[j] & set(piece) for j in reach[i])
        assert kept(ops, taken, ONE) <= kept(ops, taken, ALL)


class TestStretch:
    @pytest.mark.parametrize("read", list(Read))
    @pytest.mark.parametrize("merge", list(Merge))
    @pytest.mark.parametrize("shares", [(50, 50), (25, 75), (34, 33, 33)])
    def test_is_a_valid_network_with_the_same_inputs_and_outputs(
        self, merge: Merge, read: Read, shares: tuple[int, ...]
    ) -> None:
        made = stretch(two_blocks(), shares, merge, read=read, int8=frozenset({1})).blueprint.with_weights(0)
        onnx.checker.check_model(made, full_check=True)
        session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"data": np.ones((1, 3, 16, 16), np.float32)})
        assert logits.shape == (1, 10) and np.isfinite(logits).all()

    def test_merge_points_and_operators_of_a_small_network(self) -> None:
        graph = graph_from_model(two_blocks().model, name="small")
        ends = {merge: [region.exit for region in regions(graph, merge)] for merge in Merge}
        assert ends == {
            Merge.NETWORK: ["sum.relu"],
            Merge.STAGE: ["a.relu", "sum.relu"],
            Merge.BLOCK: ["a.relu", "b.relu", "sum.relu"],
            Merge.OPERATOR: ["a.relu", "b.relu", "c.relu", "d"],
        }
        found = names(stretch(two_blocks(), (50, 50), Merge.STAGE).blueprint)
        assert found.count("CONV_2D") == 8
        assert found.count("ADD") == 2
        assert found.count("STRIDED_SLICE") == 2  # the network's input is read whole
        assert found.count("CONCATENATION") == 2
        assert names(stretch(two_blocks(), (50, 50), Merge.STAGE, read=Read.SPLIT).blueprint).count("SPLIT") == 1

    def test_branches_halve_the_weights_of_convolutions(self) -> None:
        whole, halves = two_blocks(), stretch(two_blocks(), (50, 50), Merge.NETWORK).blueprint
        fixed = 3 * 9 * 16 + 16 + 16 + 16 + 4 * 16 + 16 * 10 + 10  # stem, biases, norm and classifier stay
        assert parameters(halves) - fixed == (parameters(whole) - fixed) / 2

    def test_one_branch_computes_what_the_original_does(self) -> None:
        whole = two_blocks().with_weights(0)
        alone = stretch(two_blocks(), (100,), Merge.BLOCK).blueprint.with_weights(1)
        values = {tensor.name: tensor for tensor in whole.graph.initializer}
        for tensor in alone.graph.initializer:
            tensor.raw_data = values[tensor.name.partition(BRANCH)[0]].raw_data
        data = np.random.default_rng(0).standard_normal((1, 3, 16, 16), dtype=np.float32)
        first, second = (
            onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(
                None, {"data": data}
            )[0]
            for m in (whole, alone)
        )
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-5)

    def test_what_cannot_be_stretched_is_named(self) -> None:
        with pytest.raises(UsageError, match="groups of channels"):
            stretch(two_blocks(groups=4), (50, 50), Merge.BLOCK)
        with pytest.raises(UsageError, match="too few channels"):
            stretch(two_blocks(), (20,) * 5, Merge.BLOCK)
        net = Builder("dense")
        with pytest.raises(UsageError, match="no place where branches could meet"):
            stretch(net.finish(net.gemm(net.input("x", (1, 8)), "y", 8)), (50, 50), Merge.NETWORK)

    def test_depthwise_convolutions_are_shared_by_channels(self) -> None:
        made = stretch(two_blocks_depthwise(), (50, 50), Merge.NETWORK).blueprint
        assert names(made).count("DEPTHWISE_CONV_2D") == 2
        onnx.checker.check_model(made.with_weights(0), full_check=True)


def two_blocks_depthwise() -> Blueprint:
    net = Builder("depthwise")
    x = net.conv(net.input("data", (1, 3, 16, 16)), "a", 16, 3)
    return net.finish(net.conv(net.conv(x, "b", 16, 3, groups=16), "c", 16, 1))


class TestFallback:
    def test_counted_by_hand(self) -> None:
        """Per branch: conv a; slice, pad, conv b, conv c, conv d, add. Outside: two concats, mean, reshape, dense."""
        made = stretch(two_blocks(), (50, 50), Merge.STAGE)
        ops = lower(made.graph())
        gpu = {GPU: Delegate(rule_set("tflite_gpu"), ONE)}
        found = count(ops, (CPU, GPU), gpu)
        assert found.operators == 2 * 7 + 5
        assert found.added == 2 + 2
        assert found.meant == 7 + 5
        assert found.refused == 0
        # conv a, concat, slice .. add | concat, mean, reshape, dense: the first, of eight, is kept
        assert found.left == 4
        assert found.unsupported == pytest.approx(4 / 19)
        assert found.unsupported_of_meant == pytest.approx(4 / 12)
        assert found.on_cpu == pytest.approx(1 - 8 / 19)

    def test_a_split_is_refused_and_belongs_to_no_branch(self) -> None:
        ops = lower(stretch(two_blocks(), (50, 50), Merge.STAGE, read=Read.SPLIT).graph())
        assert [branch_of(op) for op in ops if op.name == "SPLIT"] == [None]
        assert count(ops, (CPU, GPU), {GPU: Delegate(rule_set("tflite_gpu"))}).refused == 1

    def test_resnet50_alone_is_wholly_supported(self) -> None:
        found = fallback(blueprint("resnet50"), (GPU,), Merge.BLOCK, tflite(ONE))
        assert (found.operators, found.added, found.unsupported) == (78, 0, 0.0)

    def test_resnet50_on_cpu_and_gpu_is_near_the_studys_share(self) -> None:
        """About 48 % (arXiv 2405.01851, section 3.1.2), with one merge point per block and TFLite's one partition."""
        assert fallback(blueprint("resnet50"), (CPU, GPU), Merge.BLOCK, tflite(ONE)).unsupported == pytest.approx(
            0.48, abs=0.05
        )

    def test_more_merges_and_more_processors_lower_the_supported_share(self) -> None:
        network = blueprint("resnet50")
        by_merge = [fallback(network, (CPU, GPU), merge, tflite(ONE)).unsupported for merge in Merge]
        assert by_merge == sorted(by_merge) and by_merge[0] < by_merge[-1]
        sets = ((GPU,), (CPU, GPU), (CPU, GPU, DSP))
        by_set = [fallback(network, units, Merge.BLOCK, tflite(ONE)) for units in sets]
        assert [f.added for f in by_set] == sorted({f.added for f in by_set})
        assert [f.unsupported for f in by_set] == sorted({f.unsupported for f in by_set})


class TestHub:
    def test_gpu_and_newer_npu_keep_grouped_convolutions(self) -> None:
        for p in profiles():
            if p.network in ("regnet_x_3_2gf", "resnext50_32x4d") and p.board != "QCS8250 DSP":
                assert p.left == 0
                assert predicted_left(p, ALL) == 0

    def test_grouped_convolutions_take_their_neighbours_off_the_dsp(self) -> None:
        cases = [p for p in profiles() if p.board == "QCS8250 DSP" and "resnext" in p.network]
        assert cases
        for p in cases:
            by_type, by_pieces = predicted_left(p, ALL), predicted_left(p, Limits(max_partitions=2))
            assert by_type is not None and by_pieces is not None
            assert by_type < 0.25 < p.left
            assert by_pieces == pytest.approx(p.left, abs=0.02)

    def test_depthwise_networks_are_predicted_whole(self) -> None:
        cases = [p for p in profiles() if p.network == "mobilenet_v2" and p.board == "QCS8250 DSP"]
        assert cases and all(predicted_left(p, ALL) == 0 and p.left < 0.01 for p in cases)

    def test_networks_have_the_size_that_torchvision_gives(self) -> None:
        sizes = {"resnet50": 25.5, "resnext50_32x4d": 25.0, "wide_resnet50_2": 68.8, "regnet_x_3_2gf": 15.3}
        for name, millions in sizes.items():  # normalizations folded: some ten thousand fewer
            assert parameters(network(name)) / 1e6 == pytest.approx(millions, rel=0.01)
