"""Classifies with a bundle: run this with BUNDLE INPUT.npy. An app on a phone does the same in C++."""

import json
import sys
from pathlib import Path

import ncnn
import numpy as np

folder = Path(sys.argv[1])
settings = json.loads((folder / "ncnn.json").read_text(encoding="utf-8"))
net = ncnn.Net()
net.opt.num_threads = settings["threads"]
net.opt.use_vulkan_compute = settings["use_vulkan"] and ncnn.get_gpu_count() > 0
net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = settings["use_fp16"]
net.load_param(str(folder / "model.param"))
net.load_model(str(folder / "model.bin"))
run = net.create_extractor()
sample = np.load(sys.argv[2])[0]  # the batch of 1 is not for ncnn
run.input(settings["inputs"][0]["blob"], ncnn.Mat(sample).clone())
_, blob = run.extract(settings["outputs"][0]["blob"])
scores = blob.numpy()
print(f"class {int(scores.argmax())}, score {scores.max():.4f}")
