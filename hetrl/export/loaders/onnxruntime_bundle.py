"""Runs a hetrl bundle in ONNX Runtime, side by side where the plan says so. Copy this file: it does without hetrl."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort


class OnnxRuntimeBundle:
    def __init__(self, folder, options=lambda entry: ort.SessionOptions()):
        self.job = json.loads((Path(folder) / "sessions.json").read_text(encoding="utf-8"))
        self.workers, self.sessions = {}, []
        for entry in self.job["sessions"]:
            settings, path = options(entry), str(Path(folder) / entry["model"])
            settings.intra_op_num_threads = entry["threads"]
            settings.add_session_config_entry("session.force_spinning_stop", "1")
            here = [name for name in entry["providers"] if name in ort.get_available_providers()]
            fresh = ThreadPoolExecutor(1, initializer=_pin, initargs=(entry["cores"],))
            worker = self.workers.setdefault(entry["processor"], fresh)
            self.sessions.append(worker.submit(ort.InferenceSession, path, settings, here).result())

    def run(self, inputs):
        tensors, done = {t["name"]: np.empty(t["shape"], t["dtype"]) for t in self.job["tensors"]} | dict(inputs), []
        for entry, session in zip(self.job["sessions"], self.sessions, strict=True):
            after = [done[number] for number in entry["after"]]
            done.append(self.workers[entry["processor"]].submit(_step, entry, session, tensors, after))
        for step in done:
            step.result()
        return {name: tensors[name] for name in self.job["outputs"]}


def _step(entry, session, tensors, after):
    for other in after:
        other.result()
    begin = time.perf_counter()
    feeds = {port["name"]: tensors[port["tensor"]][_part(port)] for port in entry["reads"]}
    for port, result in zip(entry["writes"], session.run([p["name"] for p in entry["writes"]], feeds), strict=True):
        if port["axis"] is None:
            tensors[port["tensor"]] = result
        else:
            tensors[port["tensor"]][_part(port)] = result
    if entry["duty"] < 1:
        time.sleep((time.perf_counter() - begin) * (1 / entry["duty"] - 1))


def _part(port):
    return ... if port["axis"] is None else (slice(None),) * port["axis"] + (slice(port["start"], port["stop"]),)


def _pin(cores):
    if cores and hasattr(os, "sched_setaffinity") and set(cores) <= os.sched_getaffinity(0):
        os.sched_setaffinity(0, cores)
