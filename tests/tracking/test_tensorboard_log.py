"""TensorBoard logs, read back by TensorBoard itself."""

import json
import subprocess
import sys
import time
from io import BytesIO
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from funcvae import tracking
from tests.support.tracking import CONFIG, EPOCHS, STEPS, free_port, pictures, run


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

    def test_images_are_framed_and_arranged_eight_in_a_row(self, tmp_path):
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

    def test_rows_are_written_immediately_and_nothing_before_the_first(self, tmp_path):
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

    def test_a_full_disk_stops_the_tracker_but_not_the_run(self, tmp_path, capsys):
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
        assert line.startswith("funcvae: tensorboard stopped; the run continues without it: ")
        assert 30 < len(self.read(tmp_path).Scalars("train/loss")) < STEPS


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
