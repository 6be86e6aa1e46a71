"""Classifies with a bundle: `hetrl run openvino --print-loader > openvino_bundle.py`, then run this with
BUNDLE INPUT.npy. A third argument `stand-in` lets CPUs play devices that are not there.
"""

import sys

import numpy as np
import openvino_bundle

compiled = openvino_bundle.load(sys.argv[1], stand_in="stand-in" in sys.argv)
scores = compiled(np.load(sys.argv[2]))[0]
print(f"class {int(scores.argmax())}, score {scores.max():.4f}")
