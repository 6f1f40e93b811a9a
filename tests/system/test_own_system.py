"""Own systems from a file: every command, equal runs from Python, model options, and changed code."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import funcvae as fv
from funcvae import cli, runs
from funcvae._support import files
from funcvae.errors import BadData, BadValue, Stopped
from tests.support import commands
from tests.support.own_systems import SOURCE, SPEC, write_own_system
from tests.support.sweeps import after

TRAIN = ["train", SPEC, "--data", "birds.npz", "--no-compile"]
OWN = ["--system", SPEC]


@pytest.fixture
def own(here, no_figures) -> Path:
    """The file of an own system, in the current folder."""
    return write_own_system()


@pytest.fixture
def run(own, capsys) -> str:
    """A finished run of the own system."""
    cli.main([*TRAIN, "--out", "run"])
    capsys.readouterr()
    return "run"


def refused(capsys, *args: str) -> str:
    """The error of a refused command."""
    capsys.readouterr()
    return commands.refused(capsys, *args)


COMMANDS = {
    "evaluate": ["--samples", "4", "--n", "5", "--chunk", "4"],
    "variance": ["--replicates", "4", "--estimators", "iwae"],
    "sample": ["--n", "4"],
    "reconstruct": ["--n", "4"],
    "interpolate": ["0", "1", "--steps", "2", "--frames", "2"],
    "latent": [],
    "verify": [],
    "replay": ["2"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_works_on_a_run_of_an_own_system(run, capsys, command):
    error = refused(capsys, command, run, *COMMANDS[command])
    assert f"give --system {SPEC}, or resume it by: funcvae train {SPEC} --resume run\n" in error
    cli.main([command, run, *COMMANDS[command], *OWN])
    assert capsys.readouterr().out


def test_python_makes_the_same_folder_as_the_command(run):
    Path("script.py").write_text(SOURCE + "fv.runs.train(bird, data='birds.npz', out='run', compile=False)\n")
    Path("run").rename("by_command")
    system = runs.systems_in("my_systems.py")["bird_vae"]
    runs.train(system, data="birds.npz", out="run", compile=False, device=fv.runs.resolve_device("auto"))
    for name in ("config.json", "params.safetensors"):
        assert Path("run", name).read_bytes() == Path("by_command", name).read_bytes()
    by_command, manifest = (files.read_json(Path(folder, "manifest.json")) for folder in ("by_command", "run"))
    assert manifest == by_command | {"command": manifest["command"]}
    assert manifest["system"]["source"] == SPEC
    assert runs.train(SPEC, data="birds.npz", out="spec", epochs=1, compile=False) == Path("spec")
    assert runs.verify("spec", system=system).first_difference is None


def test_the_training_data_set_the_bias_that_the_command_finds_in_the_file(run):
    first = runs.load(run, system=SPEC)
    trained = runs.initial_run(SPEC, data="birds.npz")
    assert fv.tree.sha256(trained.params) != fv.tree.sha256(first.params)
    start = trained.params["decoder"]["0.bias"]
    assert start.allclose(trained.dataset().train.mean(0).flatten())


def test_a_stopped_run_resumes_with_the_same_bits(run, capsys):
    with pytest.raises(Stopped, match=f"to continue: funcvae train {SPEC} --resume stopped"):
        runs.train(SPEC, data="birds.npz", out="stopped", compile=False, stop_context=after(3))
    assert "funcvae train my_systems.py:bird_vae --resume stopped" in refused(capsys, "train", "--resume", "stopped")
    cli.main(["train", SPEC, "--resume", "stopped", "--model.latent", "3"])
    assert Path("stopped/params.safetensors").read_bytes() == Path("run/params.safetensors").read_bytes()
    assert "cannot be resumed with other settings: model.latent was 3 and is 4 now" in refused(
        capsys, "train", SPEC, "--resume", "stopped", "--model.latent", "4"
    )
    runs.resume("stopped", runs.Options(epochs=3), system=SPEC)
    assert runs.load("stopped", system=SPEC).config.epochs == 3


def test_changed_code_is_named(run, own, capsys):
    own.write_text(SOURCE.replace("VAE of birds", "VAE of owls"))
    changed = "my_systems.py was changed after the run in run started: restore it, or start another run"
    for command in (["verify", run, *OWN], ["replay", run, "0", *OWN], ["train", SPEC, "--resume", run]):
        assert changed in refused(capsys, *command)
    cli.main(["sample", run, "--n", "4", *OWN])
    assert "funcvae: my_systems.py was changed after the run in run started\n" in capsys.readouterr().err


def test_a_run_of_another_system_is_refused(run, capsys):
    assert "run is a run of bird_vae, not of mnist_vae" in refused(capsys, "sample", run, "--system", "mnist_vae")
    cli.main(["train", "--epochs", "1", "--batch", "1000", "--no-compile", "--out", "named"])
    assert "named is a run of gaussian2d_vae, not of bird_vae" in refused(capsys, "sample", "named", *OWN)


def test_a_sweep_with_an_own_system(own, capsys):
    grid = {
        "systems": [SPEC], "estimators": ["elbo", "iwae"], "samples": [2], "replicates": 4,
        "settings": {"data": "birds.npz", "compile": False, "epochs": 1, "model": {"latent": 2}},
    }  # fmt: skip
    Path("grid.json").write_text(json.dumps(grid))
    cli.main(["sweep", "grid.json", "--out", "sweep"])
    capsys.readouterr()
    assert f"give --system {SPEC}\n" in refused(capsys, "collect", "sweep")
    cli.main(["collect", "sweep", *OWN])
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if row[:1] == ["bird_vae"]] == [["bird_vae", "elbo"], ["bird_vae", "iwae"]]
    cell = "sweep/cells/bird_vae-iwae-k2-s0"
    assert runs.load(cell, system=SPEC).config.model == {"latent": 2, "hidden": (8,), "alpha": 1.0}
    own.write_text(SOURCE + "\n")
    assert "my_systems.py was changed after the run in sweep/cells/bird_vae-elbo-k2-s0 started" in refused(
        capsys, "sweep", "grid.json", "--out", "sweep"
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"systems": [SPEC, "./my_systems.py:bird_vae"]}, "systems has 'bird_vae' twice"),
        (
            {"settings": {"data": "birds.npz", "model": {"latnt": 3}}},
            "unknown model option 'latnt': did you mean 'latent'?",
        ),
        ({"settings": {"model": 3}}, "model is 3: it must be a dict"),
        ({"systems": ["my_systems.py:bird"]}, "my_systems.py: unknown system 'bird': did you mean 'bird_vae'?"),
    ],
)
def test_a_grid_with_a_wrong_own_system_or_option_is_refused(own, capsys, changed, message):
    Path("grid.json").write_text(json.dumps({"systems": [SPEC], "settings": {"data": "birds.npz"}} | changed))
    assert message in refused(capsys, "sweep", "grid.json")


def test_a_cell_that_keeps_the_best_parameters_has_their_numbers(own):
    settings = {"data": "birds.npz", "compile": False, "epochs": 40, "lr": "0.3", "keep_best": True,
                "optimizer": "adamw", "early_stopping": 2}  # fmt: skip
    Path("grid.json").write_text(json.dumps({"systems": [SPEC], "settings": settings}))
    cli.main(["sweep", "grid.json", "--out", "sweep"])
    cell = Path("sweep/cells/bird_vae-elbo-k1-s0")
    result, run = files.read_json(cell / "cell.json"), runs.load(cell, system=SPEC)
    bounds = run.history.test_bound
    assert len(bounds) == bounds.argmax() + 3
    assert result["test_bound"] == bounds.max() > bounds[-1]
    assert result["params_sha256"] == fv.tree.sha256({"params": run.params, "state": run.state})


def test_list_shows_the_systems_of_a_file(own, capsys):
    cli.main(["list", "systems", "--from", "my_systems.py", "--wide"])
    *named, last = capsys.readouterr().out.splitlines()
    assert len(named) == len(fv.models.SYSTEMS)
    assert last.split(maxsplit=1) == [SPEC, "VAE of birds"]
    assert "--from is my_systems.py: it is for systems, not for noise" in refused(
        capsys, "list", "noise", "--from", "my_systems.py"
    )


def test_model_options_are_part_of_the_configuration(own, run):
    cli.main([*TRAIN, "--out", "other", "--model.latent=2", "--model.hidden", "4,6", "--model.alpha", "2"])
    config = files.read_json(Path("other/config.json"))
    assert config["model"] == {"latent": 2, "hidden": [4, 6], "alpha": 2.0}
    by_python = runs.configure(
        SPEC, data="birds.npz", out="other", model={"hidden": [4, 6], "latent": 2, "alpha": 2}, compile=False,
        device=config["device"],
    )  # fmt: skip
    assert files.as_json(by_python.content()) == Path("other/config.json").read_bytes()
    shas = {files.read_json(Path(folder, "manifest.json"))["config_sha256"] for folder in ("run", "other")}
    assert len(shas) == 2
    loaded = runs.load("other", system=SPEC)
    assert loaded.model.latent == 2
    assert loaded.params["encoder"]["1.weight"].shape == (4, 16)


def test_help_shows_the_model_options_of_a_system(own, capsys):
    for command, system, text in (
        ("train", "mnist_bn_vae", "--model.alpha FLOAT [default: 1.0]"),
        ("variance", SPEC, "--model.hidden INT,... [default: 8]"),
        ("train", "sbn_vae", "--model.hidden VALUE,... [default: '']"),
    ):
        cli.main([command, system, "--help"])
        assert text in " ".join(capsys.readouterr().out.split())


def test_wrong_model_options_are_refused(own, run, capsys):
    for options, message in (
        (["--model.latnt", "3"], "unknown model option 'latnt': did you mean 'latent'?"),
        (["--model.latent", "many"], "model.latent is 'many': it must be a whole number"),
        (["--model.hidden", "4,x"], "model.hidden[1] is 'x': it must be a whole number"),
        (["--model.alpha", "inf"], "model.alpha is inf: it must be finite"),
        (["--model.latent"], "--model.latent requires an argument"),
    ):
        assert message in refused(capsys, *TRAIN, "--out", "other", *options)
    assert "the model of a run keeps the options" in refused(capsys, "variance", run, *OWN, "--model.latent", "2")


def test_the_variance_of_an_untrained_own_system(own, capsys):
    cli.main(["variance", SPEC, "--data", "birds.npz", "--replicates", "4", "--model.latent", "2"])
    assert "bird_vae, untrained" in capsys.readouterr().out


def test_the_reported_loss_of_the_batch_norm_system_fits_its_alpha(digits, no_figures):
    """scale(B) · (-bound - offset) is alpha · mean squared error + KL."""
    cli.main(["train", "mnist_bn_vae", "--data", "digits.npz", "--epochs", "1", "--out", "run", "--no-compile",
              "--model.alpha", "784"])  # fmt: skip
    _, found = runs.replay("run", 0)
    run = runs.load("run")
    model, params, state = run.model, found.before.params, found.before.state
    q, state = model.encode(params, state, found.x, train=True)
    z = q.sample(found.eps)
    mean = model.decode(params, state, z, train=True)[0].mean
    kl = fv.distributions.kl(q, fv.distributions.Normal(q.loc * 0, q.loc * 0 + 1)).sum(-1)
    loss = 784 * ((found.x - mean) ** 2).flatten(2).mean(-1).mean() + kl.mean()
    assert float(found.metrics.loss) == pytest.approx(float(loss), rel=1e-4)


def test_a_system_without_a_file_is_trained_and_loaded_from_python(own, capsys):
    system = replace(runs.find_system(SPEC), name="local_vae")
    runs.train(system, data="birds.npz", out="run", epochs=1, compile=False)
    source = files.read_json(Path("run/manifest.json"))["system"]
    assert source["source"] is None
    assert len(source["sha256"]) == 64
    assert runs.load("run", system=system).model.latent == 3
    assert runs.verify("run", system=system).first_difference is None
    assert "give system=SYSTEM in Python\n" in refused(capsys, "sample", "run")


def test_a_system_typed_into_a_console_has_no_hash(own):
    names: dict = {}
    exec(SOURCE, names)
    runs.train(names["bird"], data="birds.npz", out="run", epochs=1, compile=False)
    assert files.read_json(Path("run/manifest.json"))["system"] == {"source": None, "sha256": None}


def test_a_run_needs_data(own, capsys):
    assert "data is missing: give a folder of images, FILE.npy or FILE.npz to bird_vae" in refused(
        capsys, "train", SPEC, "--out", "run"
    )


def test_a_damaged_name_of_a_system_is_an_error(run):
    config = files.read_json(Path("run/config.json"))
    for name, error in ((3, BadValue), ([], BadValue), ("mnist_vae", BadData)):
        files.write(Path("run/config.json"), files.as_json(config | {"system": name}))
        with pytest.raises(error):
            runs.load("run")
