"""Classifies with a bundle: `hetrl run --print-loader > onnxruntime_bundle.py`, then run this with BUNDLE INPUT.npy."""

import sys

import numpy as np
from onnxruntime_bundle import OnnxRuntimeBundle

bundle = OnnxRuntimeBundle(sys.argv[1])
outputs = bundle.run({bundle.job["inputs"][0]: np.load(sys.argv[2])})
scores = outputs[bundle.job["outputs"][0]]
print(f"class {int(scores.argmax())}, score {scores.max():.4f}")
