"""The command line itself: lists, unknown options, and `python -m funcvae`."""

import os
import signal
import subprocess
import sys
import time

import pytest

import funcvae as fv
from funcvae import cli, data
from tests.support.commands import refused


def test_list_prints_all_names(capsys):
    for what, names in {"systems": fv.models.SYSTEMS, "noise": fv.noise.TABLE, "data": data.NAMED}.items():
        cli.main(["list", what, "--wide"])
        listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
        assert listed == list(names)


def test_list_estimators_prints_weights_target_biases_and_papers(capsys):
    cli.main(["list", "estimators", "--wide"])
    head, table = capsys.readouterr().out.split("q(z|x).\n")
    assert "sum_k path_k d_k + score_k s_k" in head
    lines = table.splitlines()
    assert [line.split()[0] for line in lines[::2]] == list(fv.estimators.EXAMPLES.values())
    row = next(i for i, line in enumerate(lines) if line.split(maxsplit=1) == ["dreg", "path v², score 0, theta v"])
    assert lines[row + 1].strip().split("; ") == [
        "L_K",
        "encoder unbiased, decoder unbiased",
        "needs independent noise",
        "arXiv:1810.04152",
    ]
    assert "encoder biased, decoder unbiased; encoder: wake-phi, KL(p‖q)" in table
    assert "K >= 2; needs independent noise; any posterior; Kool et al. 2019" in table


@pytest.mark.parametrize("what", ["systems", "estimators", "noise", "data"])
def test_lists_fit_80_columns(capsys, what):
    cli.main(["list", what])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["trian"], "unknown command 'trian': did you mean 'train'?"),
        (["TRAIN"], "unknown command 'TRAIN': did you mean 'train'?"),
        (["--verison"], "unknown option '--verison': did you mean '--version'?"),
        (["train", "--epoch", "3"], "unknown option '--epoch': did you mean '--epochs'?"),
        (
            ["train", "--epochs", "5", "mnist_vae", "--latent", "3"],
            "unknown option '--latent': did you mean '--model.latent'?",
        ),
        (["train", "--Epochs", "3"], "did you mean '--epochs'?"),
        (["train", "--estimator", "DReG"], "did you mean 'dreg'?"),
        (["train", "--visdom-server", "http://localhost:1"], "give --track visdom, too"),
        (["list", "noise", "runs"], "only `funcvae list runs FOLDER` takes a folder"),
        (["variance", "mnist_vae", "--checkpoint", "5"], "--checkpoint and --system are for a run folder"),
        (["sample", "run", "--out", "x.svg", "--format", "pdf"], "--out x.svg has the format of the figure"),
        (["sample", "run", "--n", "-5"], "--n is -5: it must lie between 1 and 100,000"),
        (
            ["train", "--epochs", "2.5"],
            "invalid value for --epochs: 2.5 is not a whole number; see funcvae train --help",
        ),
        (["train", "--epochs", "two"], "two is not a whole number"),
        (["train", "--epochs"], "--epochs requires an argument"),
        (["train", "a", "b"], "unexpected argument 'b'; see funcvae train --help"),
        (["train", "--split", "x"], 'Choose from: "rows", "samples"'),
        (["train", "--track", "x"], 'Choose from: "tensorboard", "visdom", "wandb"'),
        (["evaluate"], "parameter RUN requires an argument"),
        (["variance", "run", "--samples", "1,b"], "--samples is 1,b: it must be whole numbers, such as 1,4,16"),
        (["interpolate", "run", "3"], "give two test items"),
        (["interpolate", "run", "3", "4", "--classes", "1", "0"], "give two test items"),
        (["interpolate", "run", "3", "--classes", "1", "0"], "give two test items"),
        (["latent", "run", "grid", "--range", "3", "-3"], "--range is 3 -3"),
        (["sample", "run", "--out", "x.jpg"], "it must be the name of a file, NAME.png or NAME.pdf or NAME.svg"),
        (["sample", "run", "--out", "typo/x.png"], "there is no folder typo"),
        (["evaluate", "run", "--out", "typo/x.json"], "there is no folder typo"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(here, capsys, args, expected):
    assert expected in refused(capsys, *args)


def test_the_last_value_of_a_repeated_option_holds(here, capsys):
    assert "unknown estimator 'b'" in refused(capsys, "train", "--estimator", "a", "--estimator", "b")


def test_funcvae_alone_prints_help_with_three_examples(capsys):
    cli.main([])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert all(f"│ {name} " in shown for name in cli.COMMANDS)
    assert shown.split("Examples:")[1].count("\n  funcvae ") == 3
    cli.main(["--help"])
    assert capsys.readouterr().out == shown
    cli.main(["--version"])
    assert capsys.readouterr().out == f"{fv.__version__}\n"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_help_of_a_command_fits_80_columns_and_shows_no_internal_types(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    cli.main([command, "--help"])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "None" not in shown
    assert "False" not in shown


def test_help_has_groups_with_descriptions(capsys):
    cli.main(["train", "--help"])
    assert "Estimator, noise and samples." in capsys.readouterr().out


def test_completion_is_installed(here, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(here))
    cli.main(["--install-completion", "--shell", "bash"])
    (script,) = (path for path in here.rglob("*") if path.is_file() and "variance" in path.read_text())
    assert "--replicates" in script.read_text()


def test_the_help_of_a_system_shows_its_defaults_and_model_options(here, capsys):
    cli.main(["train", "mnist_vae", "--help"])
    shown = capsys.readouterr().out
    assert "--epochs 20" in shown
    assert "--model.latent  INT  [default: 2]" in shown
    cli.main(["train", "typo.py:mine", "--help"])
    assert "typo.py is missing" in capsys.readouterr().out


QUICK = [[], ["--help"], ["--version"], ["trian"], ["--verison"]]


@pytest.mark.parametrize("args", QUICK)
def test_help_and_a_mistyped_command_import_nothing_heavy(args):
    heavy = {"torch", "numpy", "matplotlib", "tqdm", "funcvae.runs"}
    program = f"""
import sys
from funcvae import cli
try:
    cli.main({args})
except SystemExit:
    pass
print(sorted({heavy} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("delay", [0.05, 0.3, 0.6, 1.0])
def test_an_interrupt_in_the_first_second_ends_quietly(here, delay):
    program = "import sys, funcvae.cli; print('ready', flush=True); funcvae.cli.main()"
    command = [sys.executable, "-c", program, "list", "estimators"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert error in ("", "funcvae: stopped\n")
    assert process.returncode in (0, 130, -signal.SIGINT)


def test_a_reader_that_closes_the_pipe_ends_the_command_quietly(here):
    command = f"{sys.executable} -m funcvae list estimators | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.startswith("Ascent direction")


def test_a_terminal_that_lacks_a_character_is_no_error(here):
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "funcvae", "list", "estimators"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "path v?, score 0, theta v" in done.stdout


def test_python_m_funcvae_runs_the_command(here):
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "funcvae", "train", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("funcvae: error: unknown system 'nothing'")
