"""Loading runs: unfinished ones, those of earlier versions, and chosen checkpoints."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import funcvae as fv
from funcvae import runs, tree
from funcvae._support import files
from funcvae.errors import BadData, BadValue, Missing, Stopped
from funcvae.runs import folder
from funcvae.runs.config import config_sha256

REFERENCE = Path(__file__).parents[1] / "reference"
EARLIER = ["run-0.6", "run-0.7", "run-0.8", "run-0.9", "run-0.10"]
pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(autouse=True)
def fresh_notices():
    folder._print_once.cache_clear()


def half_a_run(stop_after: int = 5, **options) -> Path:
    """A run of six steps, stopped before its end, with checkpoints of steps 2, 4 and 5."""
    checks = iter(range(1, 100))
    config = runs.configure(
        "gaussian2d_vae", data="points.npz", epochs=2, batch=5, samples=1, checkpoint_every=2, keep=3, out="half",
        **options,
    )  # fmt: skip
    with pytest.raises(Stopped):
        runs.run(config, stop_context=lambda: nullcontext(lambda: next(checks) >= stop_after))
    return Path("half")


def metrics(run: Path) -> dict[int, str]:
    """The SHA-256 of the parameters after each epoch of a run, by its step."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["params_sha256"] for row in rows if "params_sha256" in row}


def sha256(run: runs.Run) -> str:
    return tree.sha256({"params": run.params, "state": run.state})


def test_an_unfinished_run_gives_its_newest_checkpoint(here, capsys):
    path = half_a_run()
    capsys.readouterr()
    run = runs.load(path)
    assert (run.steps, run.all_steps, run.finished) == (5, 6, False)
    assert capsys.readouterr().err == (
        "funcvae: half is not finished: this is its checkpoint of step 5 of 6; "
        "to continue it: funcvae train --resume half\n"
    )
    assert runs.evaluation_report(run, samples=3, n=3)["log_likelihood"]
    assert len(run.history.loss) == 5
    assert runs.load(runs.resume(path)).finished
    assert capsys.readouterr().err.count("not finished") == 0


def test_a_run_that_trains_now_gives_its_newest_checkpoint(here, capsys):
    path = half_a_run()
    capsys.readouterr()
    with files.lock(path):
        assert runs.load(path).steps == 5
    assert capsys.readouterr().err.endswith("step 5 of 6; it is training now\n")


def test_a_checkpoint_can_be_chosen(here, capsys):
    path = runs.resume(half_a_run())
    epochs = metrics(path)
    capsys.readouterr()
    assert sha256(runs.load(path)) == epochs[6]
    run = runs.load(path, checkpoint=4)
    assert (run.steps, run.finished) == (4, False)
    assert sha256(runs.load(path, checkpoint=6)) == epochs[6] != sha256(run)
    assert capsys.readouterr().err == ""
    with pytest.raises(BadValue, match="half has no checkpoint of step 3; it has: 4, 5, 6"):
        runs.load(path, checkpoint=3)


def test_a_schedule_is_evaluated_at_the_step_of_the_checkpoint(here):
    spec = "beta_elbo:linear:0:1"
    path = half_a_run(estimator=spec)
    x, eps = torch.ones(1, 2), torch.ones(1, 1, 2)
    for run, beta in [(runs.load(path, checkpoint=4), 4 / 6), (runs.load(runs.resume(path)), 1.0)]:
        found, expected = (
            estimator(*run.trained, x, eps, train=False).bound
            for estimator in (run.estimator(spec), fv.estimators.beta_elbo(beta))
        )
        assert torch.allclose(found, expected, rtol=1e-6, atol=0)


def test_a_damaged_checkpoint_is_passed_over(here, capsys):
    path = half_a_run()
    capsys.readouterr()
    (path / "checkpoints" / "step-000000000005.safetensors").write_bytes(b"half")
    assert runs.load(path).steps == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "005.safetensors is not a complete safetensors file" in error
    for file in (path / "checkpoints").iterdir():
        file.write_bytes(b"half")
    with pytest.raises(BadData, match=r"005\.safetensors is not a complete"):
        runs.load(path)


def test_titles_have_the_epochs(here):
    assert folder.trained_for("vae", 0, 3.0) == "vae, untrained"
    assert folder.trained_for("vae", 1, 3.0) == "vae after 1 step"
    assert folder.trained_for("vae", 3, 3.0) == "vae after 1 epoch"
    assert folder.trained_for("vae", 7, 3.0) == "vae after 2.33 epochs"
    assert folder.trained_for("vae", 9840, 3.0) == "vae after 3,280 epochs"
    assert runs.load(half_a_run()).title == "gaussian2d_vae after 1.67 epochs"
    assert runs.initial_run("gaussian2d_vae").title == "gaussian2d_vae, untrained"


def test_a_run_that_diverged_says_why(here, capsys):
    path = half_a_run()
    files.write(path / "result.json", files.as_json({"diverged": "loss became nan at step 5"}))
    capsys.readouterr()
    runs.load(path)
    assert capsys.readouterr().err.endswith("step 5 of 6; it diverged: loss became nan at step 5\n")
    shutil.rmtree(path / "checkpoints")
    with pytest.raises(Missing, match="diverged before its first checkpoint: loss became nan at step 5"):
        runs.load(path)


def test_a_run_without_a_checkpoint_says_what_to_do(here):
    path = half_a_run()
    shutil.rmtree(path / "checkpoints")
    with pytest.raises(Missing, match="has no checkpoint yet: wait for the first one, or resume the run"):
        runs.load(path)
    with pytest.raises(BadValue, match="it has: none"):
        runs.load(path, checkpoint=2)


def test_a_run_in_training_can_be_loaded(here):
    path = half_a_run()
    with (path / "metrics.jsonl").open("a") as file, files.lock(path):
        file.write('{"epoch": 1, "step')  # a row that is not complete yet
        file.flush()
        assert len(runs.load(path).history.loss) == 5


def test_a_run_with_more_epochs_is_not_finished_until_it_has_them(here):
    path = runs.resume(half_a_run())
    checks = iter(range(1, 100))
    with pytest.raises(Stopped):
        runs.resume(path, runs.Options(epochs=3), stop_context=lambda: nullcontext(lambda: next(checks) >= 2))
    run = runs.load(path)
    assert (run.steps, run.all_steps, run.finished) == (8, 9, False)


@pytest.mark.parametrize("name", EARLIER)
def test_a_run_of_an_earlier_version_can_be_looked_at(name):
    run = runs.load(REFERENCE / name)
    assert (run.steps, run.all_steps, run.finished) == (6, 6, True)
    assert sha256(run) == metrics(run.path)[6]
    assert sha256(runs.load(run.path, checkpoint=3)) == metrics(run.path)[3]
    assert runs.evaluation_report(run, samples=3, n=3)["active_units"]["of"] == 2
    found, _ = runs.comparison_report(run, names=["elbo"], replicates=3, batch=4)
    assert len(found.rows) == 1


@pytest.mark.parametrize("name", EARLIER)
@pytest.mark.parametrize("again", [runs.resume, runs.verify, lambda path: runs.replay(path, 2)])
def test_a_run_of_an_earlier_version_is_not_continued(name, again):
    path = REFERENCE / name
    version = name.removeprefix("run-")
    with pytest.raises(BadData, match=rf"made by funcvae {version}\.0, this is {fv.__version__}: it can be looked at"):
        again(path)


def of_earlier_version(path: Path, **changed) -> Path:
    """The run of 0.6 with other settings, as if it had started with them."""
    shutil.copytree(REFERENCE / "run-0.6", path)
    content = files.read_json(path / "config.json") | changed
    manifest = files.read_json(path / "manifest.json") | {"config_sha256": config_sha256(content)}
    files.write(path / "config.json", files.as_json(content))
    files.write(path / "manifest.json", files.as_json(manifest))
    return path


def test_a_learning_rate_of_an_earlier_version_is_a_number(tmp_path):
    assert runs.load(of_earlier_version(tmp_path / "run", lr=0.002)).config.lr == "0.002"


def test_fields_that_no_longer_exist_are_named_if_they_were_used(tmp_path, capsys):
    run = runs.load(of_earlier_version(tmp_path / "run", warmth=3, cold=False))
    assert run.config.epochs == 2
    error = capsys.readouterr().err
    assert "run has settings that this version of funcvae does not have, and ignores: warmth 3\n" in error


def test_a_changed_configuration_of_an_earlier_version_is_an_error(tmp_path):
    path = of_earlier_version(tmp_path / "run")
    files.write(path / "config.json", files.as_json(files.read_json(path / "config.json") | {"samples": 3}))
    with pytest.raises(BadData, match="was changed after the run started"):
        runs.load(path)


def test_parameters_of_other_shapes_are_an_error(tmp_path):
    with pytest.raises(BadData, match=r"params\.safetensors holds the parameters of another model"):
        runs.load(of_earlier_version(tmp_path / "run", model={"hidden": 3}))
