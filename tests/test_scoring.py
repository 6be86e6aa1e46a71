"""What a model's measured score is, and what it takes to measure it."""

import json
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hetrl
from hetrl.cli.main import run
from hetrl.compress.weights import arrays, complete_model, save_model, with_arrays
from hetrl.errors import ModelError, UsageError
from hetrl.scoring import cached, evaluate, running
from hetrl.scoring.batching import with_free_batch
from hetrl.scoring.evaluate import compare, score
from hetrl.scoring.fidelity import fidelity
from hetrl.scoring.interface import interface
from hetrl.scoring.metrics import Summary, find_metric
from hetrl.scoring.opening import open_data
from hetrl.scoring.prediction import predicted_drop
from hetrl.scoring.results import Fidelity
from hetrl.scoring.running import Runner, outputs
from hetrl.zoo import save
from hetrl.zoo.source import FileSource
from tests import score_help as small
from tests.digits import Digits
from tests.torch_models import GoogLeNetLike, MobileNetLike, ViTLike, export

TOP1 = find_metric("top1")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HETRL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "scores"


class Runs:
    """Notes how many samples each run of a model takes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        call = Runner.__call__

        def counted(runner: Runner, feeds: dict[str, np.ndarray]) -> np.ndarray:
            self.sizes.append(len(next(iter(feeds.values()))))
            return call(runner, feeds)

        monkeypatch.setattr(Runner, "__call__", counted)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(monkeypatch)


def damaged(digits: Digits, noise: float) -> onnx.ModelProto:
    """The trained network with noise on its kernels."""
    model, draw = complete_model(FileSource(digits.model)), np.random.default_rng(0)
    kernels = {name: values for name, values in arrays(model).items() if values.ndim == 4}
    return with_arrays(
        model, {n: v + noise * draw.standard_normal(v.shape).astype(np.float32) for n, v in kernels.items()}
    )


# ---- scores and drops ----------------------------------------------------------------------------------------------


def test_top1_is_what_one_picture_after_the_other_gives(digits: Digits, runs: Runs) -> None:
    found = hetrl.score(digits.model, eval_data=digits.test).score
    assert found is not None and found.interval is not None

    session = ort.InferenceSession(digits.model, providers=["CPUExecutionProvider"])
    with np.load(digits.test) as file:
        right = [session.run(None, {"data": x[None]})[0].argmax() == y for x, y in zip(*file.values(), strict=True)]
    assert (found.value, found.count) == (100 * np.mean(right), len(right))
    assert found.value >= 97
    assert found.interval[0] < found.value < found.interval[1] <= 100
    assert (found.evidence, found.unit, found.runtime) == ("measured", "%", f"onnxruntime {ort.__version__}")
    assert sum(runs.sizes) < 2 * len(right) and max(runs.sizes) > 100  # though the model says one picture at a time


def test_a_drop_is_of_the_same_samples(digits: Digits) -> None:
    original, data = complete_model(FileSource(digits.model)), open_data(digits.test, interface(damaged(digits, 0)))
    after, before, drop = compare(damaged(digits, 0.04), original, data, TOP1)
    assert drop.points == pytest.approx(before.value - after.value)
    assert drop.points > 2 and drop.interval is not None
    assert drop.interval[0] < drop.points < drop.interval[1]
    assert (drop.evidence, drop.count) == ("measured", 719)

    _, _, none = compare(original, original, data, TOP1)
    assert none.points == 0 and none.interval is not None
    assert none.interval[0] == -none.interval[1] < 0  # 719 samples do not prove that there is no difference


def test_halves_share_nothing_and_have_the_same_classes(digits: Digits) -> None:
    data = open_data(digits.test, interface(damaged(digits, 0)))
    tuning, held_back = data.halves(seed=3)
    assert sorted([*tuning.rows, *held_back.rows]) == list(range(719))
    assert abs(len(tuning) - len(held_back)) <= 1
    assert np.abs(np.bincount(tuning.labels) - np.bincount(held_back.labels)).max() <= 1
    assert [*data.halves(seed=3)[0].rows] == [*tuning.rows] != [*data.halves(seed=4)[0].rows]
    parts = [hetrl.score(digits.model, eval_data=digits.test, part=part, seed=3) for part in ("tuning", "held-back")]
    assert [part.score.count for part in parts if part.score] == [360, 359]


def test_one_sample_has_no_halves() -> None:
    with pytest.raises(UsageError, match="one sample"):
        small.data(np.zeros((1, 3), np.float32), np.zeros(1, np.int64)).halves()


# ---- metrics -------------------------------------------------------------------------------------------------------


def value(metric: str, outputs: np.ndarray, labels: np.ndarray) -> float:
    """The metric of a model that gives these outputs."""
    wide = outputs.reshape(len(outputs), -1).astype(np.float32)
    shape = ",".join(map(str, outputs.shape[1:]))
    sizes = ",".join(map(str, [-1, *outputs.shape[1:]]))
    graph = small.model(
        f"g (float[N,{wide.shape[1]}] x) => (float[N,{shape}] y) <int64[{outputs.ndim}] s = {{{sizes}}}> "
        "{ y = Reshape(x, s) }"
    )
    return score(graph, small.data(wide, labels), find_metric(metric)).value


@given(st.integers(0, 10**6), st.integers(6, 12), st.integers(1, 40))
def test_topk_counts_ranks(seed: int, classes: int, count: int) -> None:
    draw = np.random.default_rng(seed)
    scores = draw.integers(0, 5, (count, classes)).astype(np.float64)  # many are equal: the lower class comes first
    labels = draw.integers(0, classes, count)
    order = np.argsort(-scores, axis=1, kind="stable")
    metric, found = find_metric("top5"), [(slice(0, count), scores)]
    assert metric.summary(found, small.data(scores, labels)).value == pytest.approx(
        100 * np.mean([label in row[:5] for label, row in zip(labels, order, strict=True)])
    )
    assert TOP1.summary(found, small.data(scores, labels)).value == pytest.approx(100 * (order[:, 0] == labels).mean())


def test_topk_takes_scores_with_empty_axes() -> None:
    scores = np.eye(6)[:, :, None, None]
    assert value("top1", scores, np.arange(6)) == 100


def test_means_over_samples() -> None:
    draw = np.random.default_rng(0)
    right = draw.random((30, 2, 4)).astype(np.float32)
    found = (right + 0.1 * draw.standard_normal(right.shape)).astype(np.float32)
    errors = ((found - right) ** 2).reshape(30, -1).mean(1)
    assert value("mse", found, right) == pytest.approx(errors.mean(), rel=1e-4)
    peak = right.max() - right.min()
    assert value("psnr", found, right) == pytest.approx((10 * np.log10(peak**2 / errors)).mean(), rel=1e-4)
    flat = found.reshape(30, -1), right.reshape(30, -1)
    cosines = (flat[0] * flat[1]).sum(1) / np.linalg.norm(flat[0], axis=1) / np.linalg.norm(flat[1], axis=1)
    assert value("cosine", found, right) == pytest.approx(cosines.mean(), rel=1e-5)
    assert value("psnr", right, right) == 100 and value("cosine", 0 * right, right) == 0


def test_a_relative_drop_is_percent_of_the_original() -> None:
    draw = np.random.default_rng(0)
    right = draw.random((200, 8)).astype(np.float32)
    inputs = (right + 0.1 * draw.standard_normal(right.shape)).astype(np.float32)
    worse = small.model("g (float[1,8] x) => (float[1,8] y) <float c = {1.1}> { y = Mul(x, c) }")
    data = small.data(inputs, right)
    for name, sign in (("mse", -1), ("psnr", 1), ("cosine", 1)):
        after, before, drop = compare(worse, small.identity(8), data, find_metric(name))
        assert drop.points == pytest.approx(100 * sign * (before.value - after.value) / before.value)
        assert drop.interval is not None and drop.interval[0] <= drop.points <= drop.interval[1]
        assert after.interval is not None and after.interval[0] < after.value < after.interval[1]
    with pytest.raises(UsageError, match="the original's mse is 0"):
        compare(worse, small.identity(8), small.data(right, right), find_metric("mse"))


METRICS = """
import numpy as np
def recall(outputs, labels):
    return np.mean(outputs.argmax(1)[labels == 1] == 1)
def error(outputs, labels):
    return 1 - (outputs.argmax(1) == labels).mean()
error.larger_is_better = False
def raises(outputs, labels):
    raise KeyError("no such thing")
def leaves(outputs, labels):
    raise SystemExit(0)
def nothing(outputs, labels):
    pass
def infinite(outputs, labels):
    return float("inf")
number = 3
"""


def test_a_metric_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Digits) -> None:
    (tmp_path / "own_metrics.py").write_text(METRICS)
    monkeypatch.chdir(tmp_path)
    save_model(damaged(digits, 0.04), tmp_path / "worse.onnx")
    found = hetrl.score("worse.onnx", eval_data=digits.test, metric="own_metrics:error", against=digits.model)
    shares = hetrl.score("worse.onnx", eval_data=digits.test, against=digits.model)
    assert found.score and found.original and found.drop and shares.score and shares.score.interval
    assert 100 * (1 - found.score.value) == pytest.approx(shares.score.value)
    assert found.score.interval is not None
    # Of the same share, another method's interval.
    assert [100 * (1 - x) for x in found.score.interval[::-1]] == pytest.approx(shares.score.interval, abs=1)
    assert found.drop.points == pytest.approx(100 * (found.score.value / found.original.value - 1))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("own_metrics:raises", "the metric own_metrics:raises raised KeyError: 'no such thing'; it is called as"),
        ("own_metrics:leaves", "raised SystemExit: 0"),
        ("own_metrics:nothing", "raised TypeError"),
        ("own_metrics:infinite", "returned inf, no finite number"),
        ("own_metrics:number", "'own_metrics' has no function 'number'"),
        ("own_metrics:", "'own_metrics' has no function ''"),
        (":f", "no module"),
        ("no_such_module_x:f", "raised ModuleNotFoundError: No module named 'no_such_module_x'"),
        ("own_broken:f", "raised SyntaxError"),
        ("top2", "unknown metric 'top2'; top1, top5, mse, psnr, cosine, or module:function of your own"),
    ],
)
def test_bad_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, told: str
) -> None:
    (tmp_path / "own_metrics.py").write_text(METRICS)
    (tmp_path / "own_broken.py").write_text("def f(:")
    monkeypatch.chdir(tmp_path)
    onnx.save(small.identity(3), tmp_path / "m.onnx")
    path = small.save(tmp_path, inputs=np.eye(3, dtype=np.float32), labels=np.arange(3))
    assert run(["score", "m.onnx", "--eval-data", str(path), "--metric", name]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and told in err


# ---- running -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [MobileNetLike, GoogLeNetLike, ViTLike])
def test_batches_give_what_single_samples_give(network: type, tmp_path: Path, runs: Runs) -> None:
    model = onnx.load(export(network(), tmp_path / "m.onnx", (1, 3, 32, 32)))
    inputs = np.random.default_rng(0).standard_normal((9, 3, 32, 32)).astype(np.float32)
    found = np.concatenate([part for _, part in outputs(model, small.data(inputs, np.zeros(9), "data"))])
    assert runs.sizes[-1] == (1 if network is ViTLike else 9)  # this exporter computes ViT's class token for one sample
    alone = Runner(model, 1)
    exact = np.concatenate([alone({"data": x[None]}) for x in inputs])
    assert np.abs(found - exact).max() <= 1e-5 * np.abs(exact).max()


MIXES = {
    "softmax over samples": "{ y = Softmax<axis = 0>(x) }",
    "the mean of samples": "{ m = ReduceMean<axes = [0], keepdims = 1>(x) y = Sub(x, m) }",
}


@pytest.mark.parametrize("body", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("batch", ["1", "N"])
def test_samples_never_mix(body: str, batch: str) -> None:
    model = small.model(f"g (float[{batch},4] x) => (float[{batch},4] y) {body}")
    inputs = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    exact = [Runner(model, 1)({"x": row[None]})[0] for row in inputs]
    found = [row for _, part in outputs(model, small.data(inputs, np.zeros(6))) for row in part]
    assert np.array_equal(found, exact)


@pytest.mark.parametrize("sizes", ["1,-1", "1,2,2", "1,4", "-1,4"])
@pytest.mark.parametrize("allowzero", [0, 1])
def test_shapes_for_one_sample_are_freed(sizes: str, allowzero: int, runs: Runs) -> None:
    count = sizes.count(",") + 1
    model = small.model(
        f"g (float[1,4] x) => (float[1,4] y) <int64[{count}] s = {{{sizes}}}, int64[2] back = {{1, 4}}> "
        f"{{ a = Reshape<allowzero = {allowzero}>(x, s) b = Relu(a) y = Reshape(b, back) }}"
    )
    inputs = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    [(_, found)] = outputs(model, small.data(inputs, np.zeros(6)))
    assert np.array_equal(found, np.maximum(inputs, 0)) and 6 in runs.sizes


def test_constants_beside_samples_are_repeated(runs: Runs) -> None:
    model = small.model(
        "g (float[1,2,3] x) => (float[1,3,3] y) <float[1,1,3] token = {7, 8, 9}> { y = Concat<axis = -2>(token, x) }"
    )
    inputs = np.random.default_rng(0).standard_normal((6, 2, 3)).astype(np.float32)
    [(_, found)] = outputs(model, small.data(inputs, np.zeros(6)))
    assert np.array_equal(found[:, 1:], inputs) and (found[:, 0] == [7, 8, 9]).all() and 6 in runs.sizes


def test_a_fixed_number_of_samples_is_filled(runs: Runs) -> None:
    mixes = small.model("g (float[4,3] x) => (float[4,3] y) { y = Softmax<axis = 0>(x) }")
    inputs = np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32)
    found = np.concatenate([part for _, part in outputs(mixes, small.data(inputs, np.zeros(10)))])
    assert found.shape == (10, 3)
    padded = inputs[[8, 9, 9, 9]]
    assert np.allclose(found[8:], (np.exp(padded) / np.exp(padded).sum(0))[:2])
    apart = small.model("g (float[4,3] x) => (float[4,3] y) { y = Softmax<axis = 1>(x) }")
    assert np.concatenate([p for _, p in outputs(apart, small.data(inputs, np.zeros(10)))]).shape == (10, 3)
    assert 10 in runs.sizes


def test_freeing_changes_nothing_of_the_original() -> None:
    model = small.model("g (float[1,4] x) => (float[1,4] y) <int64[2] s = {1, -1}> { y = Reshape(x, s) }")
    before = model.SerializeToString()
    free = with_free_batch(model, interface(model))
    assert model.SerializeToString() == before
    onnx.checker.check_model(free, full_check=True)


def test_models_that_do_not_run() -> None:
    one = small.data(np.ones((2, 4), np.float32), np.zeros(2, np.int64))
    unknown = small.model("g (float[1,4] x) => (float[1,4] y) { y = Nothing(x) }")
    with pytest.raises(ModelError, match="ONNX Runtime refuses the model"):
        score(unknown, one, TOP1)
    nan = small.model("g (float[1,4] x) => (float[1,4] y) <float c = {-1}> { a = Mul(x, c) y = Sqrt(a) }")
    with pytest.raises(ModelError, match="output 'y' has NaN for samples 0"):
        score(nan, one, TOP1)


# ---- the cache -----------------------------------------------------------------------------------------------------


def test_scores_are_measured_once(runs: Runs, own_cache: Path) -> None:
    draw = np.random.default_rng(0)
    inputs, labels = draw.random((20, 4), np.float32), draw.integers(0, 4, 20)
    data = small.data(inputs, labels)
    first = score(small.identity(4), data, TOP1)
    count = len(runs.sizes)
    assert score(small.identity(4), data, TOP1) == first and len(runs.sizes) == count

    [file] = own_cache.iterdir()
    for wrong in (b"", b"{", b"\xff", b"[]", file.read_bytes()[:-9], b'{"key":"x","summary":{"value":1,"parts":[]}}'):
        file.write_bytes(wrong)
        assert score(small.identity(4), data, TOP1) == first
        assert len(runs.sizes) > count
        count = len(runs.sizes)

    for changed in (
        (small.model("g (float[1,4] x) => (float[1,4] y) { y = Neg(x) }"), data, TOP1),
        (small.identity(4), small.data(inputs, (labels + 1) % 4), TOP1),
        (small.identity(4), small.data(inputs + 1, labels), TOP1),
        (small.identity(4), data.halves()[0], TOP1),
        (small.identity(5), small.data(draw.random((20, 5), np.float32), labels), find_metric("top5")),
    ):
        score(*changed)
        assert len(runs.sizes) > count
        count = len(runs.sizes)


def test_a_cache_that_cannot_be_written_costs_nothing(own_cache: Path) -> None:
    own_cache.parent.write_text("a file where the folder should be")
    data = small.data(np.eye(4, dtype=np.float32), np.arange(4))
    assert score(small.identity(4), data, TOP1).value == 100


def test_writers_side_by_side_leave_whole_files(own_cache: Path) -> None:
    summaries = [Summary(float(i), tuple(float(i) for _ in range(5000))) for i in range(4)]
    stop, seen = threading.Event(), []

    def write(summary: Summary) -> None:
        while not stop.is_set():
            cached.keep("k", summary)

    writers = [threading.Thread(target=write, args=(summary,)) for summary in summaries]
    cached.keep("k", summaries[0])
    for writer in writers:
        writer.start()
    for _ in range(200):
        seen.append(cached.known("k"))
    stop.set()
    for writer in writers:
        writer.join()
    assert all(found in summaries for found in seen)
    assert [file.name for file in own_cache.iterdir()] == ["k.json"]


# ---- without data --------------------------------------------------------------------------------------------------


def test_fidelity_is_no_accuracy(digits: Digits, tmp_path: Path) -> None:
    for noise in (0.0, 0.02, 0.2):
        save_model(damaged(digits, noise), tmp_path / f"{noise}.onnx")
    close = [hetrl.score(tmp_path / f"{noise}.onnx", against=digits.model).fidelity for noise in (0.0, 0.02, 0.2)]
    same, near, far = (one for one in close if one is not None)
    assert (same.cosine, same.relative_error, same.top1_agreement_pct) == (pytest.approx(1), 0, 100)
    assert same.evidence == "fidelity"
    assert 1 > near.cosine > far.cosine and 0 < near.relative_error < far.relative_error


def test_fidelity_of_a_model_whose_sizes_are_open_in_one_version() -> None:
    free = small.model("g (float[N,C] x) => (float[N,C] y) { y = Identity(x) }")
    evaluate.require_same_inputs(free, small.identity(7))
    assert fidelity(free, small.identity(7)).relative_error == fidelity(small.identity(7), free).relative_error == 0
    assert fidelity(free, free, input_shapes={"x": (1, 5)}).count == 16
    with pytest.raises(UsageError, match=r"'x' takes Nx\?; say which: --input-shape x:1x"):
        fidelity(free, free)


def test_predicted_drops_follow_the_weights_that_are_left() -> None:
    def dense(out: int, kind: str = "float") -> onnx.ModelProto:
        numbers = ",".join("1" for _ in range(out * 10))
        return small.model(
            f"g (float[1,10] x) => (float[1,{out}] y) <{kind}[10,{out}] w = {{{numbers}}}> {{ y = f(x, w) }}"
        )

    drop = predicted_drop(dense(49), dense(100))
    assert (drop.points, drop.kept_weights, drop.evidence) == (pytest.approx(4.92), 0.49, "predicted")
    assert predicted_drop(dense(100), dense(100)).points == 0
    assert predicted_drop(dense(100, "int8"), dense(100)).points == pytest.approx(0.8)


# ---- the command ---------------------------------------------------------------------------------------------------


def test_command(digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(damaged(digits, 0.04), tmp_path / "worse.onnx")
    words = ["score", str(tmp_path / "worse.onnx"), "--eval-data", str(digits.test), "--against", str(digits.model)]
    assert run([*words, "--part", "held-back", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["score"]["evidence"] == found["drop"]["evidence"] == "measured"
    assert found["drop"]["points"] == pytest.approx(found["original"]["value"] - found["score"]["value"])
    assert (found["part"], found["score"]["count"], found["fidelity"], found["predicted"]) == (
        "held-back",
        359,
        None,
        None,
    )

    assert run(words) == 0
    shown = capsys.readouterr().out
    assert "719" in shown and "measured" in shown and "points (90 % interval" in shown

    assert run([*words[:2], *words[4:]]) == 0
    assert capsys.readouterr().out.startswith("fidelity   cosine 0.")


def test_command_on_a_built_in_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    close = Fidelity(cosine=1, relative_error=0, top1_agreement_pct=None, count=1, seed=0)
    monkeypatch.setattr("hetrl.scoring.asked.fidelity", lambda *_, **__: close)  # which takes seconds, tested above
    save("resnet18", tmp_path / "mine.onnx", seeded_weights=0)
    words = ["score", str(tmp_path / "mine.onnx"), "--against", "resnet18"]
    assert run(words) == 2
    assert "--seeded-weights SEED" in capsys.readouterr().err
    assert run([*words, "--seeded-weights", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("fidelity   cosine 1.0000")
    assert lines[1] == "predicted  0.00 points of top-1 accuracy lost, with 100.0 % of the weights"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "nothing to score the model on; give --eval-data FILE or --against ORIGINAL"),
        ("--eval-data nothing.npz", "nothing.npz does not exist"),
        ("--eval-data d.npz --part half", "unknown part of the data 'half'"),
        ("--against m.onnx --part tuning", "--part tuning is of data; give --eval-data FILE"),
        ("--eval-data d.npz --threads 0", "0 threads do nothing"),
        ("--eval-data d.npz --seed -1", "--seed -1 is out of range"),
        ("--eval-data d.npz --image-mean 1,2", "pictures need three means"),
        ("--eval-data d.npz --image-std 1,2,zero", "--image-std '1,2,zero' is no list of numbers"),
        ("--eval-data d.npz --image-std 1,2,0", "above 0"),
        ("--eval-data d.npz --against other.onnx", "the models' inputs 'x' differ: float32 of Nx4, float32 of Nx5"),
        ("--eval-data d.npz --against named.onnx", "the models' inputs differ: x and z"),
        ("--eval-data d.npz --input-shape z:1x4", "--input-shape names 'z'; the model's inputs are x"),
        ("--eval-data d.npz --input-shape x:1x5", "--input-shape does not fit the input 'x'; it is 1x4"),
        ("--against nan.onnx", "the weights 'c' have 1 numbers that are NaN or infinite"),
        ("--against nix.onnx", "nix.onnx does not exist"),
        ("--against resnet81", "unknown model 'resnet81'; did you mean 'resnet18'?"),
    ],
)
def test_mistakes(
    words: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(small.identity(4), "m.onnx")
    onnx.save(small.identity(5), "other.onnx")
    onnx.save(small.model("g (float[1,4] z) => (float[1,4] y) { y = Identity(z) }"), "named.onnx")
    nan = small.model("g (float[1,4] x) => (float[1,4] y) <float[1] c = {1}> { y = Mul(x, c) }")
    onnx.save(with_arrays(nan, {"c": np.array([np.nan], np.float32)}), "nan.onnx")
    np.savez("d.npz", x=np.eye(4, dtype=np.float32), labels=np.arange(4))
    assert run(["score", "m.onnx", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert told in err


def test_missing_runtime_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(running, "find_spec", lambda name: None)
    assert run(["score", "m.onnx", "--against", "m.onnx"]) == 2
    assert "pip install 'hetrl[host]'" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("metric", ["top1", "top5", "mse", "psnr", "cosine", "numpy:vdot"])
def test_few_samples_have_wide_intervals_or_none(metric: str, count: int) -> None:
    inputs = np.random.default_rng(0).random((count, 6), np.float32)
    labels = np.arange(count) if metric.startswith("top") else inputs + inputs**2
    double = small.model("g (float[1,6] x) => (float[1,6] y) <float c = {2}> { y = Mul(x, c) }")
    if metric.startswith("top"):
        inputs = inputs * 0 + np.eye(6, dtype=np.float32)[:count]
    after, before, drop = compare(double, small.identity(6), small.data(inputs, labels), find_metric(metric))
    for bounds, value in ((after.interval, after.value), (before.interval, before.value), (drop.interval, drop.points)):
        if metric.startswith("top"):
            assert bounds is not None and bounds[1] - bounds[0] > 30
        else:
            assert (bounds is None) is (count < (3 if ":" in metric else 2))
        assert bounds is None or bounds[0] - 1e-9 <= value <= bounds[1] + 1e-9


def test_progress_counts_samples() -> None:
    seen: list[tuple[int, int]] = []
    data = small.data(np.random.default_rng(0).random((600, 4), np.float32), np.zeros(600, np.int64))
    evaluate.score(small.identity(4), data, TOP1, watch=lambda done, total: seen.append((done, total)))
    assert seen == [(256, 600), (512, 600), (600, 600)]


def test_slow_scores_say_how_far_they_are(
    digits: Digits, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hetrl.cli.score.EVERY_S", 0.0)
    words = ["score", str(digits.model), "--eval-data", str(digits.test)]
    assert run(words) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "scoring: 719/719 samples"
    assert run([*words, "--metric", "top5", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
