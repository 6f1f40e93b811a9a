"""Settings of training, checked when they are created."""

from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
import torch

from funcvae.errors import BadType, BadValue
from funcvae.train.loop import fit, fit_task
from funcvae.train.replaying import replay, replay_task
from funcvae.train.settings import Callbacks, StepSettings
from funcvae.train.task import Task
from tests.support.training import begun, same


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"batch": 0}, BadValue),
        ({"samples": 1.5}, BadType),
        ({"chunk": 0}, BadValue),
        ({"shards": "2"}, BadType),
        ({"split": "rows"}, BadType),
        ({"observe": None}, BadType),
        ({"noise": "iid"}, BadType),
        ({"scale": 2.0}, BadType),
        ({"offset": "0"}, BadType),
        ({"compile": 1}, BadType),
        ({"precision": "most"}, BadValue),
    ],
)
def test_the_error_for_a_wrong_step_setting_names_it(wrong, error):
    (name,) = wrong
    with pytest.raises(error, match=name):
        StepSettings(**wrong)


@pytest.mark.parametrize("name", ["log", "watch", "save", "stop"])
def test_callbacks_are_functions(name):
    with pytest.raises(BadType, match=f"{name} is 3: it must be a function"):
        Callbacks(**{name: 3})


def test_settings_hold_python_numbers_and_are_immutable():
    settings = StepSettings(batch=np.int64(3), offset=torch.tensor(0.5))
    assert (type(settings.batch), type(settings.offset)) == (int, float)
    with pytest.raises(FrozenInstanceError):
        settings.batch = 4


@pytest.mark.parametrize("function", [fit, replay])
def test_fit_and_replay_have_the_defaults_of_the_settings(function):
    defaults = function.__kwdefaults__
    for field in fields(StepSettings):
        assert defaults[field.name] == field.default, field.name


def test_fit_task_and_replay_task_equal_fit_and_replay(points):
    start, model, estimator, opt = begun()
    options = {"batch": 16, "samples": 2, "compile": False}
    task = Task(model, estimator, opt, points, StepSettings(**options))
    one, history = fit_task(start, task)
    two, by_parts = fit(start, model, estimator, opt, points, **options)
    assert same(one, two)
    assert all(map(np.array_equal, history, by_parts))
    assert same(replay_task(start, 2, task), replay(start, 2, model, estimator, opt, points, **options))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda task: "task", "task is 'task': it must be a Task"),
        (lambda task: None, "task is None: it must be a Task"),
        (lambda task: task._replace(settings={"batch": 3}), "settings is of type dict: it must be a StepSettings"),
        (lambda task: task._replace(opt=None), "opt is None: it must be an Optimizer"),
    ],
)
def test_a_wrong_task_is_an_error(wrong, message, points):
    start, model, estimator, opt = begun()
    task = wrong(Task(model, estimator, opt, points))
    for call in (lambda: fit_task(start, task), lambda: replay_task(start, 0, task)):
        with pytest.raises(BadType, match=message):
            call()


def test_wrong_callbacks_are_an_error(points):
    start, *rest = begun()
    with pytest.raises(BadType, match="callbacks is None: it must be a Callbacks"):
        fit_task(start, Task(*rest, points), callbacks=None)
