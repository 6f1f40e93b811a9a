"""TensorBoard logs, read back by TensorBoard itself."""

import json
import re
import subprocess
import sys
import time
from io import BytesIO
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from funcvae import tracking
from tests.support.tracking import CONFIG, EPOCHS, STEPS, free_port, pictures, rows, track


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
        with tracking.tensorboard(folder, CONFIG) as tracker:
            track(tracker)
        events = self.read(folder)
        got = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        steps = range(EPOCHS * STEPS)
        assert got == {
            "bound/train": [(step, step - 300) for step in steps],
            "bound/train_epoch": [(120, -100), (240, -99)],
            "bound/test": [(120, -110), (240, -109)],
            "grad_norm/train": [(step, 1.5 * step) for step in steps],
            "kl/train_epoch": [(120, 3), (240, 3)],
            "loss/train": [(step, 300 - step) for step in steps],
            "snr/elbo/encoder": [(120, 2), (240, 2)],
            "variance/elbo/encoder": [(120, 1), (240, 10)],
        }
        assert min(got).startswith("bound/"), "TensorBoard sorts charts by tag"

    def test_images_are_framed_and_arranged_eight_in_a_row(self, tmp_path):
        with tracking.tensorboard(tmp_path, CONFIG) as tracker:
            track(tracker)
        events = self.read(tmp_path)
        assert events.Tags()["images"] == ["images/latent", "images/x", "images/x_hat"]
        first, last = events.Images("images/x_hat")
        assert (first.step, last.step) == (120, 240)
        shown = np.array(Image.open(BytesIO(last.encoded_image_string)))
        assert shown.shape == (2 * (5 + 2), 8 * (7 + 2), 3)
        expected = np.transpose(np.rint(255 * pictures(0.5)[9]).astype(np.uint8), (1, 2, 0))
        assert np.array_equal(shown[8:13, 10:17], expected)
        assert (shown[7, :18] == 255).all()
        (_, latent) = events.Images("images/latent")
        assert (latent.height, latent.width) == (5 + 2, 7 + 2)

    def test_the_configuration_reads_back_with_the_test_bound_as_its_metric(self, tmp_path):
        from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, SESSION_START_INFO_TAG
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        with tracking.tensorboard(tmp_path, CONFIG) as tracker:
            track(tracker)
        contents = self.read(tmp_path).PluginTagToContent("hparams")
        experiment = HParamsPluginData.FromString(contents[EXPERIMENT_TAG]).experiment
        assert [metric.name.tag for metric in experiment.metric_infos] == ["bound/test"]
        assert [info.name for info in experiment.hparam_infos] == list(CONFIG), "in this order they are the columns"
        hparams = HParamsPluginData.FromString(contents[SESSION_START_INFO_TAG]).session_start_info.hparams
        got = {name: value.string_value or value.number_value for name, value in hparams.items()}
        assert got == {**CONFIG, "clip": "None", "compile": "True"}
        assert len(list(tmp_path.iterdir())) == 1  # no second run for the configuration

    def test_rows_are_written_immediately_and_nothing_before_the_first(self, tmp_path):
        folder = tmp_path / "run"
        with tracking.tensorboard(folder, CONFIG) as tracker:
            assert not folder.exists()
            for i, row in enumerate(rows(), 1):
                tracker.log(row)
                if i in (1, 60):
                    assert len(self.read(folder).Scalars("loss/train")) == i
        with tracking.tensorboard(tmp_path / "none", CONFIG):
            pass
        assert not (tmp_path / "none").exists()

    def test_a_full_disk_stops_the_tracker_but_not_the_run(self, tmp_path, capsys):
        resource = pytest.importorskip("resource", reason="this system cannot limit a file's size")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        with tracking.tensorboard(tmp_path, CONFIG) as tracker:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**13, hard))
            try:
                track(tracker)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("funcvae: tensorboard stopped; the run continues without it: ")
        assert 30 < len(self.read(tmp_path).Scalars("loss/train")) < STEPS


def test_a_real_tensorboard_server_shows_a_run(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    with tracking.tensorboard(tmp_path / "digits", CONFIG) as tracker:
        track(tracker)
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
        assert {"bound/train", "bound/train_epoch", "bound/test", "variance/elbo/encoder"} <= set(tags["digits"])
        assert [value for _, _, value in ask("scalars/scalars?run=digits&tag=bound/test")] == [-110.0, -109.0]
        assert set(ask("images/tags")["digits"]) == {"images/latent", "images/x", "images/x_hat"}
        charts = {
            chart["title"]: chart["multiline"]["tag"]
            for each in ask("custom_scalars/layout")["category"]
            for chart in each["chart"]
        }
        assert charts["bound"] == ["bound/train_epoch", "bound/test"]
        (pattern,) = charts["encoder"]
        assert [tag for tag in tags["digits"] if re.fullmatch(pattern, tag)] == ["variance/elbo/encoder"]
    finally:
        server.kill()
        server.wait()
