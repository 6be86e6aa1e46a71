"""One ONNX Runtime session with Qualcomm's HTP provider, in a process of its own; see `hetrl.support.qnn`.

`python -m hetrl.support.qnn_worker MODEL FOLDER`: the last line on stdout is the answer as JSON, the log is on stderr.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

NAME = "qnn"
VERBOSE = 0  # the only level at which the provider gives its reasons


def ask(model: Path, weights: Path) -> list[str]:
    """Names of the nodes that the HTP provider leaves to the CPU."""
    import onnxruntime as ort
    import onnxruntime_qnn

    ort.register_execution_provider_library(NAME, onnxruntime_qnn.get_library_path())
    devices = [device for device in ort.get_ep_devices() if device.ep_name == NAME]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC  # folds constants, keeps most names
    options.log_severity_level = VERBOSE
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    # Else conversions at the model's ends stay on the CPU by choice, not because the NPU lacks them.
    settings = {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), "offload_graph_io_quantization": "0"}
    options.add_provider_for_devices(devices, settings)
    session = ort.InferenceSession(model.read_bytes(), options)
    return [
        node.name
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != NAME
        for node in part.get_nodes()
    ]


def main() -> None:
    model, weights = map(Path, sys.argv[1:])
    try:
        answer: dict[str, object] = {"on_cpu": ask(model, weights)}
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        answer = {"error": " ".join(str(error).split())[:300]}
    print(f"\n{json.dumps(answer)}", flush=True)


if __name__ == "__main__":
    main()
