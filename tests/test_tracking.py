import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from io import BytesIO
from itertools import islice
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from PIL import Image

import funcvae as fv
from funcvae import runs, tracking
from funcvae.errors import Missing

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
    """What a tracker must leave alone."""
    generators = [random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()]  # noqa: NPY002
    settings = [torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), np.geterr()]
    return generators, settings, threading.enumerate()


def free_port():
    with closing(socket.create_server(("localhost", 0))) as listening:
        return listening.getsockname()[1]


class Server:
    """A visdom server of its own, started without the download of its page's scripts."""

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


@pytest.fixture
def server(tmp_path):
    pytest.importorskip("visdom", reason="visdom is not installed")
    server = Server(tmp_path)
    yield server
    server.process.kill()
    server.process.wait()


def test_rows_become_lines_of_json_that_read_back_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 0, "loss": 1.5}, {"step": 1, "loss": 0.1 + 0.2}]
    with tracking.Lines(path) as write:
        for i, row in enumerate(rows):
            write(row)
            assert [json.loads(line) for line in path.read_text().splitlines()] == rows[: i + 1]


def test_the_bar_counts_steps_and_shows_the_last_bounds(capsys):
    with tracking.progress_bar(2) as show:
        show({"step": 0, "loss": 3.0, "bound": -3.0})
        show({"step": 1, "loss": 2.0, "bound": -2.0})
        show({"step": 2, "bound": -2.5, "test_bound": -2.25})
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "test_bound=-2.25" in shown


@pytest.mark.parametrize("extra", ["tensorboard", "visdom"])
def test_an_extra_that_is_not_installed_is_named_before_anything_is_written(extra, tmp_path, monkeypatch):
    for name in {extra, *(loaded for loaded in sys.modules if loaded.startswith(f"{extra}."))}:
        monkeypatch.setitem(sys.modules, name, None)
    folder = tmp_path / "run"
    trackers = {
        "tensorboard": lambda: tracking.tensorboard(folder, CONFIG),
        "visdom": lambda: tracking.visdom("http://localhost:8097", "run", CONFIG),
    }
    with pytest.raises(Missing) as raised, trackers[extra]():
        pass
    assert tracking._INSTALL[extra] in str(raised.value)
    assert "pip install" in tracking._INSTALL[extra]
    assert "\n" not in str(raised.value)
    assert not folder.exists()


class TestTensorboard:
    @pytest.fixture(autouse=True)
    def installed(self):
        pytest.importorskip("tensorboard", reason="tensorboard is not installed")

    @staticmethod
    def read(folder):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()

    def test_every_number_reads_back_with_its_step(self, tmp_path):
        folder = tmp_path / "new" / "run"
        with tracking.tensorboard(folder, CONFIG) as track:
            for row in run():
                track(row)
        events = self.read(folder)
        got = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        steps = range(EPOCHS * STEPS)
        assert got == {
            "train/loss": [(step, 300 - step) for step in steps],
            "train/bound": [(step, step - 300) for step in steps],
            "train/grad_norm": [(step, 1.5 * step) for step in steps],
            "train/epoch_bound": [(120, -100), (240, -99)],
            "test/bound": [(120, -110), (240, -109)],
        }

    def test_pictures_are_framed_and_laid_out_eight_in_a_row(self, tmp_path):
        with tracking.tensorboard(tmp_path, CONFIG) as track:
            for row in run():
                track(row)
        events = self.read(tmp_path)
        assert events.Tags()["images"] == ["images/x", "images/x_hat"]
        first, last = events.Images("images/x_hat")
        assert (first.step, last.step) == (120, 240)
        shown = np.array(Image.open(BytesIO(last.encoded_image_string)))
        assert shown.shape == (2 * (5 + 2), 8 * (7 + 2), 3)
        expected = np.transpose((255 * pictures(0.5)[9]).astype(np.uint8), (1, 2, 0))
        assert np.array_equal(shown[8:13, 10:17], expected)
        assert (shown[7, :18] == 255).all()

    def test_the_configuration_reads_back_with_the_test_bound_as_its_metric(self, tmp_path):
        from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, SESSION_START_INFO_TAG
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        with tracking.tensorboard(tmp_path, CONFIG) as track:
            for row in run():
                track(row)
        contents = self.read(tmp_path).PluginTagToContent("hparams")
        experiment = HParamsPluginData.FromString(contents[EXPERIMENT_TAG]).experiment
        assert [metric.name.tag for metric in experiment.metric_infos] == ["test/bound"]
        hparams = HParamsPluginData.FromString(contents[SESSION_START_INFO_TAG]).session_start_info.hparams
        got = {name: value.string_value or value.number_value for name, value in hparams.items()}
        assert got == {**CONFIG, "lr": "None", "compile": "True"}
        assert len(list(tmp_path.iterdir())) == 1  # no second run for the configuration

    def test_rows_are_on_the_disk_as_they_come_and_nothing_before_the_first(self, tmp_path):
        folder = tmp_path / "run"
        with tracking.tensorboard(folder, CONFIG) as track:
            assert not folder.exists()
            for i, row in enumerate(run(), 1):
                track(row)
                if i in (1, 60):
                    assert len(self.read(folder).Scalars("train/loss")) == i
        with tracking.tensorboard(tmp_path / "none", CONFIG):
            pass
        assert not (tmp_path / "none").exists()

    def test_a_full_disk_costs_a_line_and_not_the_run(self, tmp_path, capsys):
        resource = pytest.importorskip("resource", reason="this system cannot limit a file's size")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        with tracking.tensorboard(tmp_path, CONFIG) as track:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**13, hard))
            try:
                for row in run():
                    track(row)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("funcvae: tensorboard stopped, the run goes on without it: ")
        assert 30 < len(self.read(tmp_path).Scalars("train/loss")) < STEPS


class TestVisdom:
    def test_curves_have_a_point_for_every_fifty_steps_and_for_every_epochs_test(self, server):
        with tracking.visdom(server.address, "run", CONFIG) as track:
            for row in run():
                track(row)
        steps = [24.5, 74.5, 109.5, 144.5, 194.5, 229.5]  # means of 50, 50, 20, and so again
        (loss,) = server.window("run", "loss")["content"]["data"]
        train, test = server.window("run", "bound")["content"]["data"]
        assert (loss["name"], train["name"], test["name"]) == ("train", "train", "test")
        assert (loss["x"], loss["y"]) == (steps, [300 - step for step in steps])
        assert (train["x"], train["y"]) == (steps, [step - 300 for step in steps])
        assert (test["x"][:2], test["y"][:2]) == ([120, 240], [-110, -109])
        assert set(test["x"][2:] + test["y"][2:]) == {None}

    def test_windows_say_what_they_show(self, server):
        with tracking.visdom(server.address, "run", CONFIG) as track:
            for row in run():
                track(row)
        windows = {name: server.window("run", name) for name in server.ask("win_data", eid="run", win=None)}
        assert {name: window["title"] for name, window in windows.items()} == {name: name for name in windows}
        assert list(windows) == ["config", "loss", "bound", "x", "x_hat"]
        axes = {name: windows[name]["content"]["layout"] for name in ("loss", "bound")}
        assert {name: (layout["xaxis"]["title"], layout["yaxis"]["title"]) for name, layout in axes.items()} == {
            "loss": ("steps made", "loss"),
            "bound": ("steps made", "nats per example"),
        }
        assert "mnist_vae" in windows["config"]["content"]
        assert "a&lt;b&gt;.npy" in windows["config"]["content"]
        for name in ("x", "x_hat"):
            assert windows[name]["type"] == "image"
            assert windows[name]["content"]["src"].startswith("data:image/png;base64,")

    def test_a_burst_is_no_burst_of_requests(self, server):
        with tracking.visdom(server.address, "run", CONFIG) as track:
            for row in run():
                track(row)
        assert 0 < server.requests() < EPOCHS * STEPS / 5

    def test_a_long_curve_is_thinned_and_keeps_its_last_point(self, server, monkeypatch):
        monkeypatch.setattr(tracking, "_POINTS", 4)
        with tracking.visdom(server.address, "run", CONFIG) as track:
            for row in run():
                track(row)
        (loss,) = server.window("run", "loss")["content"]["data"]
        assert loss["x"] == [74.5, 144.5, 229.5]

    def test_a_run_that_stops_early_shows_all_it_had(self, server):
        def stop_early():
            with tracking.visdom(server.address, "run", CONFIG) as track:
                for row in islice(run(), 70):
                    track(row)
                raise ArithmeticError

        with pytest.raises(ArithmeticError):
            stop_early()
        (loss,) = server.window("run", "loss")["content"]["data"]
        assert loss["x"] == [24.5, 59.5]

    def test_names_that_visdom_cannot_keep_are_mended(self, server):
        with tracking.visdom(server.address, "runs/a b+c'\\d.é-1", CONFIG):
            pass
        assert "runs_a_b_c__d.é-1" in server.ask("env_state")

    def test_an_address_may_come_without_http(self, server):
        with tracking.visdom(f"localhost:{server.port}/", "run", CONFIG):
            pass
        assert "run" in server.ask("env_state")

    def test_curves_grow_while_the_run_goes_on(self, server, monkeypatch):
        monkeypatch.setattr(tracking, "_PAUSE", 0.0)
        monkeypatch.setattr(tracking, "_SHARE", 1e9)
        rows = run()
        with tracking.visdom(server.address, "run", CONFIG) as track:
            for points in (1, 2):
                for row in islice(rows, 50):
                    track(row)
                (loss,) = server.window("run", "loss")["content"]["data"]
                assert len(loss["x"]) == points

    @pytest.mark.parametrize("draws", ["at every burst", "at the end"])
    @pytest.mark.parametrize("how", ["KILL", "STOP"])
    def test_a_server_that_dies_or_hangs_costs_a_line_and_not_the_run(self, how, draws, server, capsys, monkeypatch):
        monkeypatch.setattr(tracking, "_TIMEOUT", 0.5)
        monkeypatch.setattr(tracking, "_PAUSE", 0.0 if draws == "at every burst" else 1e9)
        monkeypatch.setattr(tracking, "_SHARE", 1e9)
        with tracking.visdom(server.address, "run", CONFIG) as track:
            for i, row in enumerate(run()):
                if i == 100:
                    server.process.send_signal(signal.Signals[f"SIG{how}"])
                track(row)
        out, err = capsys.readouterr()
        (line,) = err.splitlines()
        assert line.startswith("funcvae: visdom stopped, the run goes on without it: ")
        assert server.address in line
        assert not out

    @pytest.mark.parametrize(
        "address", ["http://localhost:{port}", "localhost:{port}", "ftp://localhost", "http://a:b"]
    )
    def test_a_server_that_is_not_there_is_named_with_the_way_to_start_one(self, address, capsys):
        pytest.importorskip("visdom", reason="visdom is not installed")
        address = address.format(port=free_port())
        with pytest.raises(Missing) as raised, tracking.visdom(address, "run", CONFIG):
            pass
        assert f"no visdom server answers at {address}: " in str(raised.value)
        assert "`python -m visdom.server`" in str(raised.value)
        assert "\n" not in str(raised.value)
        assert capsys.readouterr() == ("", "")

    def test_a_server_that_never_answers_is_not_waited_for(self, monkeypatch):
        pytest.importorskip("visdom", reason="visdom is not installed")
        monkeypatch.setattr(tracking, "_TIMEOUT", 0.2)
        with closing(socket.create_server(("localhost", 0))) as silent:
            address = f"http://localhost:{silent.getsockname()[1]}"
            with pytest.raises(Missing, match=address), tracking.visdom(address, "run", CONFIG):
                pass


def test_trackers_leave_every_global_generator_setting_and_thread_alone(tmp_path, server):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    before = global_state()
    with tracking.tensorboard(tmp_path, CONFIG) as write, tracking.visdom(server.address, "run", CONFIG) as draw:
        for row in run():
            write(row)
            draw(row)
            assert threading.enumerate() == before[2]
    assert global_state() == before


@pytest.mark.parametrize("extra", ["tensorboard", "visdom"])
def test_importing_an_extra_leaves_every_global_generator_alone(extra):
    pytest.importorskip(extra, reason=f"{extra} is not installed")
    module = {"tensorboard": "torch.utils.tensorboard", "visdom": "visdom"}[extra]
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_tracking import global_state; "
    )
    program += f"before = global_state(); import {module}; assert global_state() == before"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("dies", [False, True])
def test_a_run_shown_on_visdom_has_the_same_bits_even_if_the_server_dies(server, tmp_path, monkeypatch, capsys, dies):
    monkeypatch.setattr(tracking, "_PAUSE", 0.0)
    monkeypatch.setattr(tracking, "_SHARE", 1.0)
    x = fv.random.uniform(fv.random.key(0), (40, 1, 28, 28)).numpy()
    np.savez(tmp_path / "digits.npz", train=x[:30], test=x[30:])

    def config(out):
        return runs.configure(
            "mnist_vae", data=str(tmp_path / "digits.npz"), epochs=3, batch=10, out=str(tmp_path / out)
        )

    @contextmanager
    def killer(run, config, past):
        def kill(row):
            if dies and row["step"] >= 3:
                server.process.kill()
                server.process.wait()

        yield kill

    plain = runs.run(config("plain"))
    capsys.readouterr()
    trackers = [lambda run, config, past: tracking.visdom(server.address, run.name, config, past), killer]
    tracked = runs.run(config("tracked"), trackers=trackers)
    error = capsys.readouterr().err
    assert error.count("visdom stopped, the run goes on without it") == dies
    assert "Traceback" not in error
    for file in ("params.safetensors", "metrics.jsonl"):
        assert (plain / file).read_bytes() == (tracked / file).read_bytes()
    if not dies:
        assert {"loss", "bound", "x", "x_hat"} <= set(server.ask("win_data", eid="tracked", win=None))


def test_a_real_tensorboard_server_shows_a_run(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    with tracking.tensorboard(tmp_path / "digits", CONFIG) as track:
        for row in run():
            track(row)
    port = free_port()
    options = ["--logdir", str(tmp_path), "--port", str(port), "--load_fast", "false"]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen([sys.executable, "-m", "tensorboard.main", *options], stdout=log, stderr=log)

    def ask(path):
        with urlopen(f"http://localhost:{port}/data/plugin/{path}", timeout=10) as answer:
            return json.load(answer)

    try:
        for _ in range(600):
            assert server.poll() is None, (tmp_path / "server.log").read_text()
            try:
                if tags := ask("scalars/tags"):
                    break
            except OSError:
                pass
            time.sleep(0.1)
        scalars = {"train/loss", "train/bound", "train/grad_norm", "train/epoch_bound", "test/bound"}
        assert set(tags["digits"]) == scalars
        assert [value for _, _, value in ask("scalars/scalars?run=digits&tag=test/bound")] == [-110.0, -109.0]
        assert set(ask("images/tags")["digits"]) == {"images/x", "images/x_hat"}
    finally:
        server.kill()
        server.wait()
