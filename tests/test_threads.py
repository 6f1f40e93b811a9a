"""The number of torch's threads, and how long they spin."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import funcvae as fv
from funcvae import cli, runs
from funcvae.errors import BadType, BadValue

SMALL, LARGE = {"w": torch.zeros(100, 100)}, {"w": torch.zeros(100, 100), "conv": torch.zeros(8, 8, 3, 3)}


@pytest.fixture
def no_variables(monkeypatch):
    for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("no_variables")
@pytest.mark.parametrize(
    ("params", "rows", "threads"), [(SMALL, 3333, 1), (SMALL, 3334, 2), (LARGE, 1, 2)]
)  # 6 * 3,333 * 10⁴ < 2·10⁸
def test_a_small_step_runs_on_one_thread(params, rows, threads):
    assert fv.threads.of_step(params, rows) == threads
    with fv.threads.using(threads):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("no_variables")
def test_the_variable_of_the_user_has_priority(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert fv.threads.of_step(SMALL, 1) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # which OpenMP ignores
    assert fv.threads.of_step(SMALL, 1) == 1


@pytest.mark.parametrize(("count", "error"), [(0, BadValue), ("2", BadType), (1.5, BadType)])
def test_a_wrong_number_of_threads_is_refused(count, error):
    with pytest.raises(error, match="count is"), fv.threads.using(count):
        pass


@pytest.mark.usefixtures("no_variables")
def test_spinning_is_limited_unless_the_user_has_set_it(monkeypatch):
    assert fv.threads.limit_spinning() is False, "torch was imported"
    assert os.environ["GOMP_SPINCOUNT"] == str(fv.threads.SPIN_COUNT)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    fv.threads.limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    fv.threads.limit_spinning()
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.usefixtures("no_variables")
def test_the_advice_names_the_variables_and_what_is_set(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    text = fv.threads.advice()
    assert text.startswith("torch uses 2 threads; OMP_NUM_THREADS is not set, GOMP_SPINCOUNT is 7,")
    assert "OMP_WAIT_POLICY is not set. What was set after torch was imported" in text
    assert "export OMP_NUM_THREADS=1" in text
    with fv.threads.using(1):
        assert "there is nothing to set" in fv.threads.advice()


def test_the_command_line_limits_spinning_before_torch_is_imported():
    code = (
        "import sys, os; sys.argv = ['funcvae', '--version']; from funcvae import cli; cli.main()\n"
        "assert 'torch' not in sys.modules; print(os.environ['GOMP_SPINCOUNT'])"
    )
    env = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    out = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout
    assert out.split()[-1] == str(fv.threads.SPIN_COUNT)


def test_the_first_eager_step_imports_neither_the_compiler_nor_sympy():
    code = (
        "import sys, torch, funcvae as fv\n"
        "model, opt = fv.models.burda_vae(), fv.optim.adam()\n"
        "ts, x = fv.train.init(model, opt, fv.random.key(0)), torch.rand(40, 1, 28, 28)\n"
        "fv.train.fit(ts, model, fv.estimators.iwae(), opt, x, batch=20, observe=fv.models.recipe.binarize,"
        " compile=False)\n"
        "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


@pytest.mark.usefixtures("no_variables")
def test_a_run_uses_one_thread_for_small_steps_and_can_be_verified_and_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train = ["train", "gaussian2d_vae", "--epochs", "1", "--batch", "500", "--samples", "1", "--no-compile"]
    cli.main([*train, "--out", "run"])
    assert torch.get_num_threads() == 2
    assert json.loads(Path("run/manifest.json").read_text())["threads"] == 1
    assert runs.verify("run", steps=5).first_difference is None
    capsys.readouterr()
    cli.main(["train", "--resume", "run", "--epochs", "2"])
    assert "bits may differ" not in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*train, "--out", "other", "--lr", "1e30"])
    assert torch.get_num_threads() == 2
