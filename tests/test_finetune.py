"""Fine-tuning: what it recovers, what it promises, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from hetrl.compress.low_rank.factor import factor
from hetrl.compress.low_rank.policy import LowRank
from hetrl.compress.pruning import prune
from hetrl.compress.quantize import quantize
from hetrl.compress.weights import arrays, complete_model, with_arrays
from hetrl.errors import HetrlError, ModelError, UsageError
from hetrl.finetune.results import Epoch, Finetuned
from hetrl.finetune.settings import FinetuneSettings, Loss, Optimizer
from hetrl.finetune.trainable import trainable_weights
from hetrl.finetune.training import finetune
from hetrl.zoo.source import open_source
from tests.digits import Digits
from tests.test_torch_operators import runtime
from tests.trainable_models import exported

SHORT = FinetuneSettings(epochs=2, batch=8)


def accuracy_pct(model: onnx.ModelProto, digits: Digits) -> float:
    """On pictures that no training saw, in ONNX Runtime."""
    test = np.load(digits.test)
    for batch in (model.graph.input[0], model.graph.output[0]):
        assert batch.type.tensor_type.shape.dim[0].dim_value == 1
    free = onnx.ModelProto()
    free.CopyFrom(model)
    for info in (*free.graph.input, *free.graph.output):
        info.type.tensor_type.shape.dim[0].dim_param = "n"
    del free.graph.value_info[:]
    (scores,) = runtime(free, {"data": test["inputs"]}).values()
    return 100 * float((scores.argmax(1) == test["labels"]).mean())


@pytest.fixture(scope="module")
def original(digits: Digits) -> onnx.ModelProto:
    return complete_model(open_source(digits.model)[0])


def on_digits(model: onnx.ModelProto, original: onnx.ModelProto, digits: Digits, epochs: int) -> Finetuned:
    train = np.load(digits.train)
    return finetune(model, train["inputs"], train["labels"], FinetuneSettings(epochs=epochs), teacher=original)


def test_half_of_the_channels_go_and_accuracy_stays(original: onnx.ModelProto, digits: Digits) -> None:
    """The acceptance line: at most 2 points are lost, many more without fine-tuning; int8 costs at most 1 point."""
    before = accuracy_pct(original, digits)
    assert before >= 97
    smaller = prune(original, 0.5)
    assert smaller.report.macs[1] < 0.3 * smaller.report.macs[0]
    assert accuracy_pct(smaller.model, digits) < before - 20

    tuned = on_digits(smaller.model, original, digits, 6)
    assert accuracy_pct(tuned.model, digits) >= before - 2
    assert tuned.report.batched and tuned.report.best > 0 and not tuned.report.interrupted
    assert tuned.report.after.accuracy > tuned.report.before.accuracy
    assert [n.name for n in tuned.model.graph.node] == [n.name for n in smaller.model.graph.node]

    samples = ({"data": picture[None]} for picture in np.load(digits.train)["inputs"][:32])
    assert accuracy_pct(quantize(tuned.model, samples).model, digits) >= before - 3


def test_low_rank_recovers_too(original: onnx.ModelProto, digits: Digits) -> None:
    smaller = factor(original, LowRank(keep=0.25)).model
    before = accuracy_pct(original, digits)
    assert accuracy_pct(smaller, digits) < before - 10
    assert accuracy_pct(on_digits(smaller, original, digits, 3).model, digits) >= before - 2


# What it promises


@cache
def network(name: str, **options: bool) -> onnx.ModelProto:
    return exported(name, Path(mkdtemp(prefix="hetrl-finetune-")), opset=17, **options)


@cache
def pictures(count: int = 40) -> np.ndarray:
    draw = np.random.default_rng(5)
    return (draw.standard_normal((count, 3, 32, 32)) + draw.standard_normal((count, 3, 1, 1))).astype(np.float32)


@cache
def classes(count: int = 40) -> np.ndarray:
    """A rule that can be learnt: which of three colours is the brightest."""
    return pictures(count).mean((2, 3)).argmax(1).astype(np.int64)


def disturbed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Half of the weights of every layer are 0."""
    old = arrays(model)
    moved = {name: np.where(np.arange(old[name].size).reshape(old[name].shape) % 2, old[name], 0) for name in
             trainable_weights(model) if old[name].ndim > 1}  # fmt: skip
    return with_arrays(model, {name: value.astype(np.float32) for name, value in moved.items()})


def test_the_same_seed_gives_the_same_bytes_and_nothing_else_changes() -> None:
    model, before = disturbed(network("shufflenet")), torch.get_rng_state()
    threads, given = torch.get_num_threads(), model.SerializeToString(deterministic=True)
    one, two = (finetune(model, pictures(), classes(), SHORT, teacher=network("shufflenet")) for _ in range(2))
    other = finetune(model, pictures(), classes(), msgspec.structs.replace(SHORT, seed=1))
    made = [found.model.SerializeToString(deterministic=True) for found in (one, two, other)]
    assert made[0] == made[1] != made[2] and given not in made
    assert msgspec.to_builtins(one.report.after) == msgspec.to_builtins(two.report.after)
    assert model.SerializeToString(deterministic=True) == given
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads


@pytest.mark.parametrize("optimizer", Optimizer)
def test_labels_are_learnt(optimizer: Optimizer) -> None:
    rate = 1e-2 if optimizer is Optimizer.ADAM else None
    settings = FinetuneSettings(epochs=6, batch=8, optimizer=optimizer, learning_rate=rate)
    report = finetune(network("mobilenet"), pictures(), classes(), settings).report
    assert report.epochs[-1].loss < 0.7 * report.epochs[1].loss
    assert report.samples == (34, 6) and len(report.epochs) == 7


def test_probabilities_are_learnt_as_classes() -> None:
    """The network ends in Softmax: its logarithm is what cross-entropy needs."""
    model, settings = network("shufflenet"), FinetuneSettings(epochs=1, batch=8)
    report = finetune(model, pictures(), classes(), settings).report
    (scores,) = (np.concatenate(column) for column in zip(*(
        runtime(model, {"data": x[None]}).values() for x in pictures()), strict=True))  # fmt: skip
    wanted = -np.log(scores[np.arange(40), classes()])
    # The mean over the validation part is one over some of them.
    assert wanted.min() <= report.before.loss <= wanted.max()
    held = np.random.default_rng([0, 40]).permutation(40)[:6]
    assert report.before.loss == pytest.approx(float(wanted[held].mean()), rel=1e-4)


def test_pictures_are_learnt_from_the_original_alone() -> None:
    whole = network("unet")
    tuned = finetune(
        disturbed(whole), pictures(24), None, FinetuneSettings(epochs=4, batch=4, learning_rate=1e-2), teacher=whole
    )
    assert tuned.report.after.loss < 0.7 * tuned.report.before.loss and tuned.report.after.accuracy is None


def test_targets_are_learnt() -> None:
    targets = pictures(24) * 0.5
    report = finetune(network("unet"), pictures(24), targets, FinetuneSettings(epochs=3, batch=4)).report
    assert report.after.loss < report.before.loss and report.best == 3


def test_classes_of_pixels_are_learnt() -> None:
    labels = pictures(24).argmax(1)
    report = finetune(network("unet"), pictures(24), labels, FinetuneSettings(epochs=2, batch=4)).report
    assert report.after.accuracy is not None and 0.3 < report.after.accuracy < 1


def test_ctrl_c_keeps_the_best_so_far() -> None:
    seen: list[Epoch] = []

    def stop(epoch: Epoch) -> None:
        seen.append(epoch)
        if epoch.number == 2:
            raise KeyboardInterrupt

    model = disturbed(network("vit"))
    settings = FinetuneSettings(epochs=50, batch=8)
    stopped = finetune(model, pictures(), None, settings, teacher=network("vit"), on_epoch=stop)
    assert stopped.report.best == max(epoch.number for epoch in seen if epoch.best)
    kept = finetune(stopped.model, pictures(), None, SHORT, teacher=network("vit")).report.before
    assert kept.loss == pytest.approx(stopped.report.after.loss, rel=1e-5)
    assert stopped.report.interrupted and [epoch.number for epoch in seen] == [0, 1, 2]
    assert stopped.report.after.loss < stopped.report.before.loss
    assert str(seen[0]).startswith("before training: validation")
    assert str(seen[1]).startswith("epoch 1/50: loss ")


def test_a_loss_that_is_not_finite_starts_again_from_the_best_with_smaller_steps() -> None:
    wild = FinetuneSettings(epochs=12, batch=8, optimizer=Optimizer.SGD, learning_rate=10, gradient_norm=1e30)
    tuned = finetune(one_by_one(), pictures() * 3, pictures().mean((2, 3)), wild)
    report = tuned.report
    broken = [epoch for epoch in report.epochs[1:] if np.isnan(epoch.loss)]
    assert broken and any("not finite" in note for note in report.notes)
    assert report.after.loss <= report.before.loss
    assert all(np.isfinite(value).all() for value in arrays(tuned.model).values())
    rates = [epoch.learning_rate for epoch in report.epochs[1:]]
    assert rates[len(broken)] < rates[0] / 2


def test_training_that_makes_nothing_better_changes_nothing() -> None:
    model = network("senet")
    useless = FinetuneSettings(epochs=2, batch=8, learning_rate=10, optimizer=Optimizer.SGD)
    tuned = finetune(model, pictures(), None, useless, teacher=model)
    assert tuned.report.best == 0 and tuned.report.after == tuned.report.before
    assert all(np.array_equal(value, arrays(model)[name]) for name, value in arrays(tuned.model).items())


def one_by_one() -> onnx.ModelProto:
    """Its batch of one is squeezed away, so that no batch fits."""
    weights = {"w": pictures(1)[0, :, :2, :2].reshape(3, 4)[:, :3], "s": np.ones(3, np.float32)}
    weights |= {name: np.full(3, value, np.float32) for name, value in (("z", 0.0), ("m", 0.1), ("v", 1.5))}
    graph = helper.make_graph(
        [
            helper.make_node("BatchNormalization", ["data", "s", "z", "m", "v"], ["n"]),
            helper.make_node("ReduceMean", ["n"], ["p"], axes=[2, 3], keepdims=0),
            helper.make_node("Squeeze", ["p", "zero"], ["q"]),
            helper.make_node("MatMul", ["q", "w"], ["r"]),
            helper.make_node("Unsqueeze", ["r", "zero"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, (1, 3, 32, 32))],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(value, name) for name, value in weights.items()]
        + [numpy_helper.from_array(np.zeros(1, np.int64), "zero")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_graph_that_takes_no_batch_is_trained_one_by_one() -> None:
    model = one_by_one()
    tuned = finetune(model, pictures(), classes(), FinetuneSettings(epochs=4, batch=8, learning_rate=0.05))
    assert not tuned.report.batched and "one sample at a time" in tuned.report.notes[0]
    assert tuned.report.after.loss < tuned.report.before.loss
    old, new = arrays(model), arrays(tuned.model)
    assert {name for name in old if not np.array_equal(old[name], new[name])} == {"w", "s", "z"}


def test_a_graph_for_four_is_trained_by_fours(tmp_path: Path) -> None:
    model = exported("densenet", tmp_path, batch=4)
    report = finetune(model, pictures(), classes(), SHORT).report
    assert report.batched and report.epochs[-1].loss < report.epochs[1].loss


# What it refuses


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (pictures()[:, :2], classes(), r"samples of the shape 40x2x32x32 do not fit .*; it wants Nx3x32x32"),
        (pictures() * np.nan, classes(), "NaN or infinite"),
        (pictures(), classes()[:-1], "of different numbers: 39, 40"),
        (pictures(), classes() + 9, r"the label 1\d is none of the model's 10 classes; labels are 0 to 9"),
        (pictures(), classes() - 5, "the label -5 is none"),
        (pictures(), np.stack([classes()] * 2, 1), "classes of the shape 2x2 do not fit the output; it is 2x10"),
        (pictures(), pictures(), "targets of the shape 2x3x32x32 do not fit the output"),
        (pictures(), np.full((40, 10), np.inf), "targets have numbers that are NaN"),
        (pictures(3), classes(3), "3 samples are too few"),
        (pictures() * 1j, classes(), "samples of the type complex64 do not fit the input 'data'; it is float32"),
        ({"image": pictures()}, classes(), "the data are for image; the model's inputs are data"),
        (pictures(), None, "without labels needs the original"),
    ],
)
def test_data_that_do_not_fit(
    inputs: np.ndarray | Mapping[str, np.ndarray], labels: np.ndarray | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        finetune(network("mobilenet"), inputs, labels, SHORT)


def test_models_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match="other outputs than the compressed one"):
        finetune(network("mobilenet"), pictures(), classes(), SHORT, teacher=network("unet"))
    with pytest.raises(UsageError, match="float32 are no classes"):
        finetune(network("mobilenet"), pictures(), pictures(), SHORT, loss=Loss.CROSS_ENTROPY)
    model = network("mobilenet")
    old = arrays(model)
    loud = with_arrays(model, {name: old[name] * np.float32(1e25) for name in trainable_weights(model)})
    with pytest.raises(ModelError, match="outputs are not finite"):
        finetune(loud, pictures(), classes(), SHORT)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"learning_rate": -1.0},
        {"learning_rate": float("nan")},
        {"batch": 0},
        {"seed": -1},
        {"distillation": 1.5},
        {"temperature": 0.0},
        {"validation_share": 0.9},
        {"gradient_norm": float("inf")},
        {"threads": 0},
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(HetrlError, match="makes no sense"):
        FinetuneSettings(**wrong)
