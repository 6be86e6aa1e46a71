"""Evaluation data: npz files and folders of pictures, and everything that is wrong with them."""

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from hetrl.cli.main import run
from hetrl.errors import MissingExtra, ModelError, UsageError
from hetrl.scoring import pictures
from hetrl.scoring.evaluate import score
from hetrl.scoring.interface import InputSpec, interface
from hetrl.scoring.metrics import find_metric
from hetrl.scoring.opening import open_data
from hetrl.scoring.pictures import IMAGENET_MEAN, IMAGENET_STD, Normalization
from tests import score_help as small

FLOATS = np.eye(4, dtype=np.float32)
LABELS = np.arange(4)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HETRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pickled() -> bytes:
    file = io.BytesIO()
    np.savez(file, x=np.array([print, None]), labels=LABELS)
    return file.getvalue()


def single() -> bytes:
    file = io.BytesIO()
    np.save(file, FLOATS)
    return file.getvalue()


def archive(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


NAN = FLOATS.copy()
NAN[2, 1] = np.nan


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "cannot be read as npz: not in numpy's format, or damaged; np.savez(FILE"),
        (b"not an archive", "not in numpy's format"),
        (archive(x=FLOATS, labels=LABELS)[:300], "not in numpy's format, or damaged"),
        (pickled(), "it holds Python objects"),
        (single(), "it is a single array"),
        (archive(), "has no array 'x' or 'inputs', only nothing; the model wants Nx4"),
        (archive(y=FLOATS, labels=LABELS), "has no array 'x' or 'inputs', only 'y', 'labels'"),
        (archive(x=FLOATS), "holds no labels, only 'x'"),
        (archive(x=FLOATS, labels=LABELS, targets=FLOATS), "holds both labels and targets"),
        (archive(x=FLOATS, labels=LABELS[:3]), "has 4 samples of 'x' and 3 labels"),
        (archive(x=FLOATS[:0], labels=LABELS[:0]), "holds no samples"),
        (archive(x=FLOATS[:, :3], labels=LABELS), "has inputs of 4x3; the model's input 'x' wants float32 of Nx4"),
        (archive(x=FLOATS[0], labels=LABELS), "has inputs of 4; "),
        (archive(x=np.float32(1), labels=LABELS), "has inputs of no size"),
        (
            archive(x=FLOATS.astype(np.uint8), labels=LABELS),
            "of type uint8; the model's input 'x' wants float32 of Nx4, scaled",
        ),
        (archive(x=FLOATS.astype(bool), labels=LABELS), "has inputs of type bool"),
        (archive(x=FLOATS.astype(complex), labels=LABELS), "has inputs of type complex128"),
        (archive(x=NAN, labels=LABELS), "has NaN or infinite inputs in 1 samples; look at inputs[2]"),
        (archive(x=1e300 * FLOATS.astype(np.float64), labels=LABELS), "infinite inputs in 4 samples"),
        (archive(x=FLOATS, labels=LABELS + 1), "a label is 4, and the output 'y' has 4 classes; classes are 0 to 3"),
        (archive(x=FLOATS, labels=LABELS - 1), "a label is -1"),
        (archive(x=FLOATS, labels=FLOATS.astype(int)), "int64 of 4x4; labels.argmax(1) if they are one-hot"),
        (archive(x=FLOATS, labels=LABELS.astype(float)), "labels are float64 of 4; integers from 0 on"),
        (archive(x=FLOATS, labels=np.array(list("abcd"))), "has labels of type <U1"),
        (archive(x=FLOATS, labels=np.array(3)), "has labels a single number"),
        (archive(x=FLOATS, labels=np.full(4, 2**64 - 1, np.uint64)), "has labels beyond all class numbers"),
        (archive(x=FLOATS, targets=NAN), "has NaN or infinite targets"),
    ],
)
def test_files_that_do_not_fit(here: Path, capsys: pytest.CaptureFixture[str], content: bytes, told: str) -> None:
    (here / "data.npz").write_bytes(content)
    onnx.save(small.identity(4), here / "m.onnx")
    assert run(["score", "m.onnx", "--eval-data", "data.npz"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert told in err


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((5, 8, 8), r"inputs\[:, None\]"),
        ((5, 8, 8, 1), r"inputs\.transpose\(0, 3, 1, 2\)"),
        ((5, 1, 9, 8), "float32 of Nx1x8x8$"),
    ],
)
def test_the_hint_for_axes(here: Path, shape: tuple[int, ...], hint: str) -> None:
    model = small.model("g (float[1,1,8,8] data) => (float[1,1,8,8] y) { y = Identity(data) }")
    path = small.save(here, inputs=np.zeros(shape, np.float32), labels=np.zeros(5, int))
    with pytest.raises(UsageError, match=hint):
        open_data(path, interface(model))


def test_types_are_the_model_s(here: Path) -> None:
    for kind, dtype, given in (
        ("float16", np.float16, np.float64),
        ("int32", np.int32, np.uint8),
        ("bool", bool, bool),
    ):
        model = small.model(f"g ({kind}[1,4] x) => ({kind}[1,4] y) {{ y = Identity(x) }}")
        path = small.save(here, inputs=np.eye(4).astype(given), labels=LABELS[:, None])
        data = open_data(path, interface(model))
        assert data.samples.batch(data.rows)["x"].dtype == dtype
        assert data.labels.shape == (4,)
    with pytest.raises(UsageError, match="do not fit into int8"):
        small_int = small.model("g (int8[1,1] x) => (int8[1,1] y) { y = Identity(x) }")
        open_data(small.save(here, inputs=np.array([[300]]), labels=np.zeros(1, int)), interface(small_int))


def test_several_inputs_go_by_name(here: Path) -> None:
    model = small.model("g (float[1,4] a, float[1,4] b) => (float[1,4] y) { y = Sub(a, b) }")
    path = small.save(here, a=2 * FLOATS, b=FLOATS, labels=LABELS)
    assert score(model, open_data(path, interface(model)), find_metric("top1")).value == 100
    with pytest.raises(UsageError, match="has no array 'b', only 'a', 'labels'"):
        open_data(small.save(here, a=FLOATS, labels=LABELS), interface(model))


@pytest.mark.parametrize(
    ("metric", "labels", "told"),
    [
        ("mse", {"labels": LABELS}, "mse wants targets like the output 'y', Nx4, and they are N; --metric top1"),
        ("cosine", {"targets": FLOATS[:, :2]}, "and they are Nx2; targets of Nx4"),
        ("psnr", {"targets": 0 * FLOATS}, "psnr wants targets that differ"),
        ("top1", {"targets": FLOATS}, "top1 wants a class number per sample, and labels are float32 of 4x4"),
    ],
)
def test_metrics_say_what_labels_they_want(here: Path, metric: str, labels: dict[str, np.ndarray], told: str) -> None:
    data = open_data(small.save(here, x=FLOATS, **labels), interface(small.identity(4)))
    with pytest.raises(UsageError) as caught:
        score(small.identity(4), data, find_metric(metric))
    assert told in str(caught.value)


def test_outputs_that_are_no_scores(here: Path) -> None:
    data = open_data(small.save(here, x=FLOATS, labels=LABELS), interface(small.identity(4)))
    for body in (
        "float[1,2,2] y) <int64[3] s = {-1, 2, 2}> { y = Reshape(x, s) }",
        "float[1,1] y) { y = ReduceSum<keepdims = 1>(x) }",
    ):
        with pytest.raises(UsageError, match="top1 wants scores of classes, and the output 'y' is Nx"):
            score(small.model(f"g (float[1,4] x) => ({body}"), data, find_metric("top1"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("g () => (float[1] y) { y = Constant<value = float[1] {1}>() }", "no inputs"),
        ("g (string[1] x) => (string[1] y) { y = Identity(x) }", "'x' has no shape or no numbers"),
        ("g (float x) => (float y) { y = Identity(x) }", "'x' has no shape or no numbers"),
        (
            "g (float[1,2] x) => (float[1,2] y) <float[2] c = {1, 1}> "
            "{ y = BatchNormalization<training_mode = 1>(x, c, c, c, c) }",
            "the operator 'y' is in training mode; export the model in evaluation mode",
        ),
        (
            "g (float[1,4] a, float[2,4] b) => (float[2,4] y) { y = Sub(a, b) }",
            "first sizes of the model's inputs differ",
        ),
    ],
)
def test_models_that_no_data_fit(text: str, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        interface(small.model(text))


# ---- pictures ------------------------------------------------------------------------------------------------------

SPEC = "g (float[1,3,8,8] data) => (float[1,3] y) { m = GlobalMaxPool(data) y = Flatten(m) }"
PURE = {
    "blue": (0, 0, 255),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
}  # sorted; the model's classes are red, green, blue


@pytest.fixture
def folder(here: Path) -> Path:
    """Pictures of pure colours, of several sizes and kinds, in folders of their names."""
    for name, colour in PURE.items():
        (here / "val" / name).mkdir(parents=True)
        for index, size in enumerate([(8, 8), (20, 11), (64, 100)]):
            suffix = (".png", ".JPEG", ".jpg")[index]
            Image.new("RGB", size, colour).save(here / "val" / name / f"{index}{suffix}")
        (here / "val" / name / "notes.txt").write_text("no picture")
        (here / "val" / name / "._0.png").write_text("what some systems leave behind")
    return here / "val"


def test_pictures(folder: Path) -> None:
    (folder / "classes.txt").write_text("red\ngreen\nblue\n")
    model = small.model(SPEC)
    data = open_data(folder, interface(model))
    assert (len(data), sorted(data.labels.tolist())) == (9, [0, 0, 0, 1, 1, 1, 2, 2, 2])
    found = score(model, data, find_metric("top1"))
    assert (found.value, found.count) == (100, 9)
    batch = data.samples.batch(np.array([8]))["data"]  # the last one is red
    assert batch.dtype == np.float32 and batch.shape == (1, 3, 8, 8)
    pure = (np.array([1, 0, 0]) - IMAGENET_MEAN) / IMAGENET_STD
    assert batch[0, :, 4, 4] == pytest.approx(pure, abs=0.05)  # JPEG is not exact


def test_class_numbers_of_folders(folder: Path) -> None:
    wanted = interface(small.model(SPEC))
    assert set(open_data(folder, wanted).labels) == {0, 1, 2}
    (folder / "synset_words.txt").write_text("green some words\nred, of roses\nn1 other\nblue\nred\n")
    assert sorted(set(open_data(folder, wanted).labels)) == [0, 3, 4]
    (folder / "classes.txt").write_text("red\ngreen\n")
    with pytest.raises(UsageError, match="does not name the folder 'blue'"):
        open_data(folder, wanted)


def test_a_folder_of_some_classes_needs_a_list(folder: Path) -> None:
    (folder / "red" / "0.png").rename(folder / "green" / "moved.png")
    for file in (folder / "red").iterdir():
        file.unlink()
    (folder / "red").rmdir()
    data = open_data(folder, interface(small.model(SPEC)))
    with pytest.raises(UsageError, match="folders for 2 classes, the output 'y' has 3; list the model's classes"):
        score(small.model(SPEC), data, find_metric("top1"))


def test_normalization_and_layout(folder: Path) -> None:
    last = InputSpec("data", np.dtype(np.float32), (1, 8, 8, 3))
    assert pictures.picture_shape(last) == (3, 8, 8, False)
    model = small.model("g (uint8[1,8,8,3] data) => (uint8[1,8,8,3] y) { y = Identity(data) }")
    raw = open_data(folder, interface(model)).samples.batch(np.array([0]))["data"]
    assert raw.dtype == np.uint8 and raw[0, 4, 4].tolist() == [0, 0, 255]
    wanted = interface(small.model(SPEC))
    plain = open_data(folder, wanted, Normalization((0, 0, 0), (1, 1, 1)))
    assert plain.samples.batch(np.array([0]))["data"][0, :, 4, 4].tolist() == [0, 0, 1]
    assert plain.key != open_data(folder, wanted).key
    grey = small.model("g (float[1,1,8,8] data) => (float[1,1,8,8] y) { y = Identity(data) }")
    found = open_data(folder, interface(grey)).samples.batch(np.array([0]))["data"]
    assert found.shape == (1, 1, 8, 8)
    assert found[0, 0, 4, 4] == pytest.approx((29 / 255 - np.mean(IMAGENET_MEAN)) / np.mean(IMAGENET_STD), abs=0.02)


@pytest.mark.parametrize(
    ("size", "target"), [((500, 375), (224, 224)), ((375, 500), (224, 224)), ((100, 400), (32, 64))]
)
def test_the_middle_is_cut_out(size: tuple[int, int], target: tuple[int, int]) -> None:
    width, height = size
    ramp = np.broadcast_to(np.linspace(0, 255, width), (height, width)).astype(np.uint8)
    found = np.asarray(pictures.middle(Image.fromarray(ramp), *target), float)
    assert found.shape == target
    scale = max(target[0] / height, target[1] / width) * 256 / 224
    seen = target[1] / scale / width  # share of the width that is in the middle
    assert found[:, 0].mean() == pytest.approx(255 * (0.5 - seen / 2), abs=4)
    assert found[:, -1].mean() == pytest.approx(255 * (0.5 + seen / 2), abs=4)


def test_pictures_have_content_in_their_key(folder: Path) -> None:
    wanted = interface(small.model(SPEC))
    before = open_data(folder, wanted).key
    assert open_data(folder, wanted).key == before
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "red" / "0.png")
    assert open_data(folder, wanted).key != before


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ("float[1,3,H,W]", "takes pictures of any size; say which: --input-shape data:1x3x224x224"),
        ("float[1,5,8,8]", "is Nx5x8x8, which no picture is; use an npz file"),
        ("float[1,8]", "is Nx8, which no picture is"),
    ],
)
def test_models_that_take_no_pictures(folder: Path, shape: str, told: str) -> None:
    model = small.model(f"g ({shape} data) => ({shape} y) {{ y = Identity(data) }}")
    with pytest.raises(UsageError) as caught:
        open_data(folder, interface(model))
    assert told in str(caught.value)


def test_any_size_can_be_said(folder: Path) -> None:
    model = small.model("g (float[N,3,H,W] data) => (float[N,3,H,W] y) { y = Identity(data) }")
    data = open_data(folder, interface(model, {"data": (1, 3, 12, 10)}))
    assert data.samples.batch(np.array([0, 1]))["data"].shape == (2, 3, 12, 10)


def test_bad_folders(folder: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = interface(small.model(SPEC))
    (folder / "red" / "0.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"red/0\.png cannot be read as a picture"):
        score(small.model(SPEC), open_data(folder, wanted), find_metric("top1"))
    (here / "empty").mkdir()
    with pytest.raises(UsageError, match="has no pictures in folders of classes"):
        open_data(here / "empty", wanted)
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r"pip install 'hetrl\[images\]'"):
        open_data(folder, wanted)
