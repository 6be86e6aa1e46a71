"""What is sent to a board as `python3 -c`: it needs Python 3.6, the standard library and nothing of hetrl.

    probe FOLDER     say what is there: versions, engines, files
    receive FOLDER   read files from stdin, each as `name size`, its bytes, its sha256

Answers are one line of JSON behind a line `hetrl-begin`: a login shell's start-up files may print before it.
"""

import hashlib
import importlib.util
import json
import os
import sys
import time

BEGIN = "hetrl-begin"
ENGINES = ("onnxruntime", "openvino", "ncnn")
CHUNK_BYTES = 1 << 20
LEFT_BEHIND_S = 3600  # a file that has been half received for so long will never be whole


def say(answer: object) -> None:
    print(json.dumps(answer), flush=True)


def probe(folder: str) -> None:
    say(
        {
            "python": list(sys.version_info[:3]),
            "numpy": importlib.util.find_spec("numpy") is not None,
            "engines": [name for name in ENGINES if importlib.util.find_spec(name) is not None],
            "blobs": os.listdir(os.path.join(folder, "blobs")),
            "runners": os.listdir(os.path.join(folder, "runner")),
        }
    )


def receive(folder: str) -> None:
    names = []
    try:
        forget_halves(folder)
        while True:
            line = sys.stdin.buffer.readline().decode()
            if not line:
                break
            name, size = line.split()
            receive_one(folder, name, int(size))
            names.append(name)
    except (OSError, ValueError) as error:
        say({"received": names, "error": str(error)})
    else:
        say({"received": names, "error": None})


def receive_one(folder: str, name: str, size: int) -> None:
    """Write it under another name first: a file that has its name is whole."""
    if os.path.basename(name) != name or name.startswith("."):
        raise ValueError(f"{name!r} is no file's name")
    half = os.path.join(folder, f".half-{os.getpid()}-{name}")
    digest = hashlib.sha256()
    try:
        with open(half, "wb") as file:
            while size:
                data = sys.stdin.buffer.read(min(size, CHUNK_BYTES))
                if not data:
                    raise ValueError(f"the connection ended within {name}")
                file.write(data)
                digest.update(data)
                size -= len(data)
        if sys.stdin.buffer.readline().decode().strip() != digest.hexdigest():
            raise ValueError(f"{name} arrived damaged")
        os.replace(half, os.path.join(folder, name))
    finally:
        if os.path.exists(half):
            os.remove(half)


def forget_halves(folder: str) -> None:
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if name.startswith(".half-") and time.time() - os.path.getmtime(path) > LEFT_BEHIND_S:
            os.remove(path)


if __name__ == "__main__":
    print(BEGIN, flush=True)
    {"probe": probe, "receive": receive}[sys.argv[1]](sys.argv[2])
