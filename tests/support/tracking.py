"""Rows of a run, and a local visdom server, for the tests of trackers."""

import json
import random
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from itertools import islice
from urllib.request import Request, urlopen

import numpy as np
import torch

CONFIG = {"lr": 1e-3, "estimator": "elbo", "seed": 3, "clip": None, "compile": True, "data": "a<b>.npy"}
EPOCHS, STEPS = 2, 120


def pictures(low):
    return np.linspace(low, 1, 10 * 3 * 5 * 7, dtype=np.float32).reshape(10, 3, 5, 7)


def rows():
    """The rows of a run of 2 epochs of 120 steps, with a measurement of the variance before each ends."""
    for epoch in range(EPOCHS):
        for step in range(epoch * STEPS, (epoch + 1) * STEPS):
            numbers = {"loss": 300.0 - step, "bound": step - 300.0, "grad_norm": 1.5 * step}
            yield {"kind": "step", "epoch": epoch, "step": step, **numbers}
        end = {"epoch": epoch, "step": (epoch + 1) * STEPS}
        yield {"kind": "variance", **end, "variance/elbo/encoder": 10.0**epoch, "snr/elbo/encoder": 2.0}
        means = {"train_bound": -100.0 + epoch, "train_kl": 3.0, "test_bound": -110.0 + epoch}
        yield {"kind": "epoch", **end, **means, "params_sha256": "ab"}


def track(tracker, kept=None):
    """Passes the first rows of the run to a tracker, and images after each epoch."""
    for row in islice(rows(), kept):
        tracker.log(row)
        if row["kind"] == "epoch":
            tracker.show(row["step"], {"latent": pictures(0.2)[:1], "x": pictures(0), "x_hat": pictures(0.5)})


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
