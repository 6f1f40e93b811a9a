"""Curves and images on a local visdom server."""

import signal
import socket
from contextlib import closing, contextmanager
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest

import funcvae as fv
from funcvae import runs, tracking
from funcvae.errors import Missing
from tests.support.tracking import CONFIG, EPOCHS, STEPS, free_port, rows, track


class TestVisdom:
    def test_curves_have_a_point_for_every_fifty_steps_and_every_test(self, server):
        with tracking.visdom(server.address, "run", CONFIG) as tracker:
            track(tracker)
        steps = [24.5, 74.5, 109.5, 144.5, 194.5, 229.5]  # means of 50, 50 and 20 steps in each epoch
        (loss,) = server.window("run", "loss")["content"]["data"]
        train, test = server.window("run", "bound")["content"]["data"]
        assert (loss["name"], train["name"], test["name"]) == ("train", "train", "test")
        assert (loss["x"], loss["y"]) == (steps, [300 - step for step in steps])
        assert (train["x"], train["y"]) == (steps, [step - 300 for step in steps])
        assert (test["x"][:2], test["y"][:2]) == ([120, 240], [-110, -109])
        assert set(test["x"][2:] + test["y"][2:]) == {None}

    def test_windows_have_titles_and_labels(self, server):
        with tracking.visdom(server.address, "run", CONFIG) as tracker:
            track(tracker)
        windows = {name: server.window("run", name) for name in server.ask("win_data", eid="run", win=None)}
        assert {name: window["title"] for name, window in windows.items()} == {name: name for name in windows}
        assert list(windows)[:4] == ["bound", "kl", "loss", "config"]
        assert set(windows) == {"bound", "kl", "loss", "config", "variance", "latent", "x", "x_hat"}
        axes = {name: windows[name]["content"]["layout"] for name in ("loss", "bound", "kl", "variance")}
        assert {name: (layout["xaxis"]["title"], layout["yaxis"]["title"]) for name, layout in axes.items()} == {
            "loss": ("training step", "loss"),
            "bound": ("training step", "nats per example"),
            "kl": ("training step", "nats per example"),
            "variance": ("training step", "variance of the gradient"),
        }
        assert axes["variance"]["yaxis"]["type"] == "log"
        assert windows["config"]["content"].startswith("<table><tr><th>lr&emsp;</th><td>0.001</td>")
        assert "a&lt;b&gt;.npy" in windows["config"]["content"]
        for name in ("latent", "x", "x_hat"):
            assert windows[name]["type"] == "image_history"
            shown = windows[name]["content"]
            assert [image["caption"] for image in shown] == ["step 120", "step 240"]
            assert all(image["src"].startswith("data:image/png;base64,") for image in shown)

    def test_the_variance_has_a_line_for_each_estimator_and_network(self, server):
        with tracking.visdom(server.address, "run", CONFIG) as tracker:
            track(tracker)
        (line,) = server.window("run", "variance")["content"]["data"]
        assert (line["name"], line["x"], line["y"]) == ("elbo/encoder", [120, 240], [1, 10])

    def test_many_rows_cause_few_requests(self, server):
        with tracking.visdom(server.address, "run", CONFIG) as tracker:
            track(tracker)
        assert 0 < server.requests() < EPOCHS * STEPS / 5

    def test_a_long_curve_is_thinned_and_keeps_its_last_point(self, server, monkeypatch):
        monkeypatch.setattr("funcvae.tracking.visdom_server._POINTS", 4)
        with tracking.visdom(server.address, "run", CONFIG) as tracker:
            track(tracker)
        (loss,) = server.window("run", "loss")["content"]["data"]
        assert loss["x"] == [74.5, 144.5, 229.5]

    def test_a_run_that_stops_early_shows_all_its_rows(self, server):
        def stop_early():
            with tracking.visdom(server.address, "run", CONFIG) as tracker:
                track(tracker, 70)
                raise ArithmeticError

        with pytest.raises(ArithmeticError):
            stop_early()
        (loss,) = server.window("run", "loss")["content"]["data"]
        assert loss["x"] == [24.5, 59.5]

    def test_unsupported_characters_in_names_are_replaced(self, server):
        with tracking.visdom(server.address, "runs/a b+c'\\d.é-1", CONFIG):
            pass
        assert "runs_a_b_c__d.é-1" in server.ask("env_state")

    def test_an_address_may_omit_http(self, server):
        with tracking.visdom(f"localhost:{server.port}/", "run", CONFIG):
            pass
        assert "run" in server.ask("env_state")

    def test_curves_grow_during_the_run(self, server, monkeypatch):
        monkeypatch.setattr("funcvae.tracking.visdom_server._PAUSE", 0.0)
        monkeypatch.setattr("funcvae.tracking.visdom_server._SHARE", 1e9)
        some = rows()
        with tracking.visdom(server.address, "run", CONFIG) as tracker:
            for points in (1, 2):
                for row in islice(some, 50):
                    tracker.log(row)
                (loss,) = server.window("run", "loss")["content"]["data"]
                assert len(loss["x"]) == points

    @pytest.mark.parametrize("draws", ["at every burst", "at the end"])
    @pytest.mark.parametrize("how", ["KILL", "STOP"])
    def test_a_failing_server_stops_the_tracker_but_not_the_run(self, how, draws, server, capsys, monkeypatch):
        monkeypatch.setattr("funcvae.tracking.visdom_server._TIMEOUT", 0.5)
        monkeypatch.setattr("funcvae.tracking.visdom_server._PAUSE", 0.0 if draws == "at every burst" else 1e9)
        monkeypatch.setattr("funcvae.tracking.visdom_server._SHARE", 1e9)
        with tracking.visdom(server.address, "run", CONFIG) as tracker:
            for i, row in enumerate(rows()):
                if i == 100:
                    server.process.send_signal(signal.Signals[f"SIG{how}"])
                tracker.log(row)
        out, err = capsys.readouterr()
        (line,) = err.splitlines()
        assert line.startswith("funcvae: visdom stopped; the run continues without it: ")
        assert server.address in line
        assert not out

    @pytest.mark.parametrize(
        "address", ["http://localhost:{port}", "localhost:{port}", "ftp://localhost", "http://a:b"]
    )
    def test_an_unreachable_server_raises_with_the_command_to_start_one(self, address, capsys):
        pytest.importorskip("visdom", reason="visdom is not installed")
        address = address.format(port=free_port())
        with pytest.raises(Missing) as raised, tracking.visdom(address, "run", CONFIG):
            pass
        assert f"no visdom server answers at {address}: " in str(raised.value)
        assert "`python -m visdom.server`" in str(raised.value)
        assert "\n" not in str(raised.value)
        assert capsys.readouterr() == ("", "")

    def test_a_server_that_never_answers_raises_after_the_timeout(self, monkeypatch):
        pytest.importorskip("visdom", reason="visdom is not installed")
        monkeypatch.setattr("funcvae.tracking.visdom_server._TIMEOUT", 0.2)
        with closing(socket.create_server(("localhost", 0))) as silent:
            address = f"http://localhost:{silent.getsockname()[1]}"
            with pytest.raises(Missing, match=address), tracking.visdom(address, "run", CONFIG):
                pass


@pytest.mark.parametrize("dies", [False, True])
def test_a_run_shown_on_visdom_has_the_same_bits_even_if_the_server_dies(server, tmp_path, monkeypatch, capsys, dies):
    monkeypatch.setattr("funcvae.tracking.visdom_server._PAUSE", 0.0)
    monkeypatch.setattr("funcvae.tracking.visdom_server._SHARE", 1.0)
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

        yield SimpleNamespace(log=kill, show=lambda step, images: None)

    plain = runs.run(config("plain"))
    capsys.readouterr()
    trackers = [lambda run, config, past: tracking.visdom(server.address, run.name, config, past), killer]
    tracked = runs.run(config("tracked"), trackers=trackers)
    error = capsys.readouterr().err
    assert error.count("visdom stopped; the run continues without it") == dies
    assert "Traceback" not in error
    for file in ("params.safetensors", "metrics.jsonl"):
        assert (plain / file).read_bytes() == (tracked / file).read_bytes()
    if not dies:
        assert {"loss", "bound", "latent", "x", "x_hat"} <= set(server.ask("win_data", eid="tracked", win=None))
