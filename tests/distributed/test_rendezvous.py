"""The environment variables through which processes connect."""

import pytest

from funcvae import distributed
from funcvae.distributed.collectives import SINGLE
from funcvae.errors import BadType, BadValue, FuncvaeError


def test_the_process_group_without_torchrun_is_single(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with distributed.process_group() as processes:
        assert processes is SINGLE
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    with distributed.process_group("auto") as processes:
        assert processes is SINGLE


@pytest.mark.parametrize("patience", [0, -1, float("nan"), float("inf"), 1e7, "3"])
def test_patience_must_be_a_positive_number_of_seconds_within_the_limit(patience):
    with pytest.raises((BadValue, BadType), match="patience is"), distributed.process_group(patience=patience):
        pass


def test_an_unknown_device_is_an_error():
    with pytest.raises(BadValue, match="unknown device 'gpu': did you mean 'cpu'"), distributed.process_group("gpu"):
        pass


@pytest.mark.parametrize("value", ["", "two", "-1", "1.5", "²", "9" * 5000])
def test_a_world_size_that_is_not_a_number_is_an_error(monkeypatch, value):
    monkeypatch.setenv("WORLD_SIZE", value)
    with pytest.raises(FuncvaeError) as raised:
        distributed.world_size()
    assert str(raised.value).startswith("environment variable WORLD_SIZE is ")
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("absent", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_a_missing_environment_variable_is_an_error(monkeypatch, absent):
    variables = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(absent)
    message = f"WORLD_SIZE is 2, but {absent} is not set: start all processes with torchrun"
    with pytest.raises(BadValue, match=message), distributed.process_group():
        pass


LAUNCHED = ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "JSM_NAMESPACE_SIZE"]


@pytest.mark.parametrize("name", LAUNCHED)
def test_processes_of_another_launcher_do_not_repeat_the_same_work(monkeypatch, name):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for alone in ("1", "", "two"):
        monkeypatch.setenv(name, alone)
        with distributed.process_group() as processes:
            assert processes is SINGLE
    monkeypatch.setenv(name, "4")
    message = f"{name} is 4: without torchrun 4 processes would all do the same work; start one process, or torchrun"
    with pytest.raises(BadValue, match=message), distributed.process_group():
        pass
    with distributed.process_group(separate=True) as processes:
        assert processes is SINGLE
    monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun's
    with distributed.process_group() as processes:
        assert processes is SINGLE
