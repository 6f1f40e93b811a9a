"""The command line itself: lists, unknown options, and `python -m funcvae`."""

import os
import subprocess
import sys

import pytest

import funcvae as fv
from funcvae import cli, data


def test_list_prints_all_names(capsys):
    for what, names in {"systems": fv.models.SYSTEMS, "noise": fv.noise.TABLE, "data": data.NAMED}.items():
        cli.main(["list", what])
        listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
        assert listed == list(names)


def test_list_estimators_prints_weights_target_biases_and_papers(capsys):
    cli.main(["list", "estimators"])
    head, table = capsys.readouterr().out.split("\n\n")
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


def test_an_unknown_option_is_an_error_without_a_traceback(here, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["train", "--epoch", "3"])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert "--epochs" in error
    assert "Traceback" not in error


def test_python_m_funcvae_runs_the_command(here):
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "funcvae", "train", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("funcvae: error: unknown system 'nothing'")
