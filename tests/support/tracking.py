"""Rows of a run, and a local visdom server, for the tests of trackers."""

import json
import random
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from urllib.request import Request, urlopen

import numpy as np
import torch

CONFIG = {"system": "mnist_vae", "seed": 3, "lr": None, "compile": True, "data": "a<b>.npy"}
EPOCHS, STEPS = 2, 120


def pictures(low):
    return np.linspace(low, 1, 10 * 3 * 5 * 7, dtype=np.float32).reshape(10, 3, 5, 7)


def run():
    """The rows of a run of 2 epochs of 120 steps."""
    for epoch in range(EPOCHS):
        for step in range(epoch * STEPS, (epoch + 1) * STEPS):
            yield {"epoch": epoch, "step": step, "loss": 300.0 - step, "bound": step - 300.0, "grad_norm": 1.5 * step}
        end = (epoch + 1) * STEPS
        yield {"epoch": epoch, "step": end, "bound": -100.0 + epoch, "test_bound": -110.0 + epoch}
        yield {"epoch": epoch, "step": end, "x": pictures(0), "x_hat": torch.from_numpy(pictures(0.5))}


def global_state():
    """Global state that a tracker must not change."""
    generators = [random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()]  # noqa: NPY002
    settings = [torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), np.geterr()]
    return generators, settings, threading.enumerate()


def free_port():
    with closing(socket.create_server(("localhost", 0))) as listening:
        return listening.getsockname()[1]


class Server:
    """A local visdom server, started without downloading the scripts of its page."""

    def __init__(self, folder):
        self.port = free_port()
        self.address = f"http://localhost:{self.port}"
        program = "from visdom.server.run_server import main; main()"
        options = ["-port", str(self.port), "-env_path", str(folder / "envs"), "-bind_local"]
        self.log = folder / "server.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen([sys.executable, "-c", program, *options], stdout=log, stderr=log)
        while "Application Started" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    def ask(self, endpoint, **question):
        with urlopen(Request(f"{self.address}/{endpoint}", json.dumps(question).encode()), timeout=10) as answer:
            return json.load(answer)

    def window(self, env, name):
        return self.ask("win_data", eid=env, win=name)

    def requests(self):
        return self.log.read_text().count(" POST /")
