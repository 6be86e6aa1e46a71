"""The network that the tests of compression work on is worth compressing."""

import numpy as np
import onnx
import onnxruntime as ort

from tests.digits import Digits


def test_digits_are_learned(digits: Digits) -> None:
    model = onnx.load(digits.model)
    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("BatchNormalization") == 8 and kinds.count("Add") == 2

    session = ort.InferenceSession(digits.model, providers=["CPUExecutionProvider"])
    with np.load(digits.test, allow_pickle=False) as data:
        scores = np.concatenate([session.run(None, {"data": picture[None]})[0] for picture in data["inputs"]])
        assert (scores.argmax(1) == data["labels"]).mean() >= 0.97


def test_test_pictures_are_not_trained_on(digits: Digits) -> None:
    with np.load(digits.test) as test, np.load(digits.train) as train:
        seen = {picture.tobytes() for picture in train["inputs"]}
        assert not [picture for picture in test["inputs"] if picture.tobytes() in seen]
        assert len(test["labels"]) == 719 and len(train["labels"]) == 1078
