"""Summaries of runs, from their files alone."""

import json
import os
import shutil
from pathlib import Path

import pytest

import funcvae as fv
from funcvae import runs
from funcvae._support import files
from funcvae.errors import BadData, Missing, NonFinite

REFERENCE = Path(__file__).parents[1] / "reference"
FILES = "config.json", "manifest.json", "metrics.jsonl", "result.json"


@pytest.fixture
def run(tmp_path) -> Path:
    """The run of 0.8: two epochs of three steps."""
    return shutil.copytree(REFERENCE / "run-0.8", tmp_path / "runs" / "first")


def changed(path: Path, name: str, **fields) -> None:
    content = files.read_json(path / name) if (path / name).is_file() else {}
    files.write(path / name, files.as_json(content | fields))


def with_epochs(path: Path, bounds: list[float]) -> None:
    """Replaces the metrics by rows with the names of this version, with these test bounds."""
    rows: list[dict] = []
    for epoch, bound in enumerate(bounds):
        rows += [{"kind": "step", "epoch": epoch, "step": 3 * epoch + i, "loss": 3.5, "bound": -3.5} for i in range(3)]
        means = {"train_bound": -2.5, "train_reconstruction": -2.0, "train_kl": 0.5, "test_bound": bound}
        rows.append({"kind": "epoch", "epoch": epoch, "step": 3 * epoch + 3, **means, "params_sha256": "0"})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_summary_has_the_settings_and_the_results(run):
    found = runs.summarize(run)
    assert (found.state, found.version, found.steps, found.all_steps) == ("finished", "0.8.0", 6, 6)
    assert (found.items, list(found.checkpoints)) == ((10_000, 1000), [3, 6])
    assert found.settings["lr"] == "0.001"
    rows = [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "test_bound" in row]
    last, best = rows[-1], max(rows, key=lambda row: row["test_bound"])
    known = {"test_bound": last["test_bound"], "train_bound": last["bound"], "epochs": 2}
    assert found.results == known | {"best_test_bound": best["test_bound"], "best_epoch": best["epoch"] + 1}


@pytest.mark.parametrize(
    ("estimator", "target", "of"),
    [
        ("elbo", "ELBO", ""),
        ("beta_elbo:0.01", "ELBO with 0.01 KL", "ELBO: "),
        ("iwae", "L_4", "ELBO: "),
        ("renyi:0.5", "Rényi(0.5), K = 4", "ELBO: "),
        ("of_another_version", "", "ELBO: "),
    ],
)
def test_a_summary_has_the_target_and_the_terms_of_the_elbo(run, estimator, target, of):
    with_epochs(run, [-3.0])
    changed(run, "config.json", estimator=estimator)
    found = runs.summarize(run)
    assert (found.target, found.terms) == (target, f"{of}reconstruction -2.0000, KL 0.5000")


def test_the_text_fits_80_columns_and_shows_what_differs_from_the_default(run):
    with_epochs(run, [-3.0, -4.0])
    changed(run, "config.json", clip=2.0, variance_of="stl, dreg, iwae, vimco, rws, tvo, elbo_mc, doubly_stl, miwae")
    changed(run, "result.json", host="node7")
    (run / "times.jsonl").write_text('{"step": 6, "epoch": 1, "seconds": 3700.0}\n')
    (run / "figures").mkdir()
    (run / "figures" / "training.png").touch()
    text = str(runs.summarize(run))
    assert max(map(len, text.replace(str(run), "run").splitlines())) <= 80
    for line in (
        "estimator    elbo, K = 4, noise iid", "other        clip 2.0, variance_of stl", "6 of 6 steps, epoch 2 of 2",
        "funcvae 0.8.0 on cpu of node7", "time         1 h 1 min", "test bound   -4.0000",
        "best         -3.0000 after epoch 1", "-2.5000 (reconstruction -2.0000, KL 0.5000)",
        "figures      training.png", f"next: funcvae evaluate {run}",
    ):  # fmt: skip
        assert line in text


def test_times_give_the_duration_of_a_run_without_a_result(run):
    (run / "times.jsonl").write_text('{"step": 3, "epoch": 0, "seconds": 1.5}\n{"step": 6, "epoch": 1, "sec')
    assert runs.summarize(run).results["seconds"] == 1.5


def test_an_unfinished_run_has_its_step_and_the_command_that_resumes_it(run):
    (run / "params.safetensors").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:5]) + '{"epoch": 1, "st')
    found = runs.summarize(run)
    assert (found.state, found.steps, found.results["epochs"]) == ("unfinished", 4, 1)
    assert "66% made" in runs.runs_table([found])
    assert not [command for command in found.commands if "resume" in command], "an earlier version made it"
    changed(run, "manifest.json", versions={"funcvae": fv.__version__})
    assert runs.summarize(run).commands[0] == f"funcvae train --resume {run}"
    shutil.rmtree(run / "checkpoints")
    assert len(runs.summarize(run).commands) == 1, "nothing can be loaded"


def test_a_run_that_trains_now_says_so_and_is_not_to_be_resumed(run):
    (run / "params.safetensors").unlink()
    changed(run, "manifest.json", versions={"funcvae": fv.__version__})
    assert runs.summarize(run).state == "unfinished"
    with files.lock(run):
        found = runs.summarize(run)
    assert found.state == "training"
    assert "training, 100%" in runs.runs_table([found])
    assert not [command for command in found.commands if "resume" in command]
    assert runs.summarize(run).state == "unfinished", "the lock is free again"


def test_tables_of_runs_keep_long_names_whole(run):
    name = "gaussian2d_vae-20261201-025122"
    shutil.copytree(run, run.parent / name)
    text, wide = (runs.runs_table(runs.runs_in(run.parent), wide=wide) for wide in (False, True))
    assert max(map(len, text.splitlines())) <= 80
    assert name in text
    assert "changed" not in text.splitlines()[0]
    assert "changed" in wide.splitlines()[0]


def test_a_diverged_run_has_the_reason(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(NonFinite):
        runs.train("gaussian2d_vae", optimizer="sgd", lr=1e9, epochs=1, compile=False, out=str(run))
    found = runs.summarize(run)
    assert found.state == "diverged"
    assert found.note.startswith("loss became nan at step 1")
    assert not found.commands
    assert f"diverged: {run}: loss became nan at step 1" in runs.runs_table([found])
    with pytest.raises(NonFinite, match="loss became nan at step 1"):
        runs.read_result(run)


def test_the_code_of_an_own_system_is_not_needed(run):
    changed(run, "config.json", system="bird_vae", model={"latent": 3, "hidden": [8, 9]})
    changed(run, "manifest.json", system={"source": "birds.py:bird_vae", "sha256": None})
    found = runs.summarize(run)
    assert "system       bird_vae, latent 3, hidden (8, 9)" in str(found)
    assert "lr of the recipe" in str(found)
    assert f"next: funcvae evaluate {run} --system birds.py:bird_vae" in str(found)
    changed(run, "manifest.json", system={"source": None, "sha256": None})
    assert not runs.summarize(run).commands


def test_an_incomplete_last_row_does_not_count(run):
    with_epochs(run, [float(i % 5) for i in range(20)])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "epoch", "epoch": 20, "test_bound": 9.0')
    found = runs.summarize(run)
    assert (found.steps, found.results["test_bound"], found.results["best_test_bound"]) == (60, 4.0, 4.0)
    assert found.results["best_epoch"] == 5


def test_runs_are_listed_newest_first_and_damaged_ones_with_a_reason(run):
    for age, name in enumerate(["second", "deep/third", "broken", ".hidden"]):
        other = shutil.copytree(run, run.parent / name)
        os.utime(other / "metrics.jsonl", (10**9 - age,) * 2)
    os.utime(run / "metrics.jsonl", (10**9 - 9,) * 2)
    (run.parent / "broken" / "config.json").write_text('{"system": "gauss')
    foreign = run.parent / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"hidden_size": 3}')
    found = runs.runs_in(run.parent)
    assert [each.path.name for each in found] == ["second", "third", "broken", "first"]
    assert [each.state for each in found] == ["finished", "finished", "unreadable", "finished"]
    lines = runs.runs_table(found).splitlines()
    assert max(map(len, lines[:-1])) <= 80
    assert [line.split()[0] for line in lines[-5:-1]] == ["second", "deep/third", "broken", "first"]
    assert lines[-1].startswith(f"unreadable: {run.parent / 'broken'}: ")
    assert "config.json is not JSON" in lines[-1]


def test_an_empty_folder_has_no_runs(tmp_path):
    assert runs.runs_in(tmp_path) == []
    with pytest.raises(Missing, match="no such folder"):
        runs.runs_in(tmp_path / "nowhere")


def test_runs_side_by_side_show_the_settings_that_differ(run):
    other = shutil.copytree(run, run.parent / "second")
    changed(other, "config.json", samples=50, estimator="iwae", out="elsewhere")
    text = runs.side_by_side([runs.summarize(run), runs.summarize(other)], wide=True)
    header, first, second, units = (line.split() for line in text.splitlines() if line)
    assert units[-4:] == ["KL:", "nats", "per", "example"]
    assert header[:5] == ["run", "K", "estimator", "target", "state"]
    assert first[:5] == ["first", "4", "elbo", "ELBO", "finished"]
    assert second[:5] == ["second", "50", "iwae", "L_50", "finished"]


def test_a_wide_comparison_becomes_several_tables(run):
    other = shutil.copytree(run, run.parent / "a run with a very long name that no table has room for")
    changed(other, "config.json", samples=50, estimator="iwae", lr="cosine:1e-3", seed=7, batch=100, noise="sobol")
    summaries = [runs.summarize(run), runs.summarize(other)]
    text, wide = runs.side_by_side(summaries), runs.side_by_side(summaries, wide=True)
    assert max(map(len, text.splitlines())) <= 80
    assert "\n\n" in text
    assert "\n\n" not in wide
    for value in ("cosine:1e-3", "sobol", "iwae", "-3.4290"):
        assert value in text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{}", "system is missing"),
        ("config.json", '{"system": 3}', "system is 3: it must be a string"),
        ("manifest.json", "{}", "versions is missing"),
        ("manifest.json", '{"versions": {"funcvae": "0.99.1"}}', "was made by funcvae 0.99.1"),
        ("result.json", '{"host": 3}', "host is 3: it must be a string"),
        ("metrics.jsonl", '{"step": "x"}\n', "its last row has no integer step"),
        ("metrics.jsonl", '{"step": 3, "test_bound": 1.0}\n', "epoch is missing"),
    ],
)
def test_a_damaged_run_is_an_error(run, file, content, message):
    (run / file).write_text(content)
    with pytest.raises(BadData, match=message):
        runs.summarize(run)


def test_damaged_times_are_left_out(run):
    for seconds in ("-1", "1e999", "[]", "{"):
        (run / "times.jsonl").write_text(f'{{"step": 3, "epoch": 0, "seconds": {seconds}}}\n')
        assert "seconds" not in runs.summarize(run).results


def test_the_error_names_a_folder_without_a_run(tmp_path):
    with pytest.raises(Missing, match=r"is not a run folder: it has no config\.json"):
        runs.summarize(tmp_path)
    with pytest.raises(Missing, match="no such run folder"):
        runs.summarize(tmp_path / "nowhere")
