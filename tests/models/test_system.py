"""Systems: the options of their models."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

import funcvae as fv
from funcvae.errors import BadData, BadType, BadValue
from funcvae.models import SYSTEMS, Recipe, System

RECIPE = Recipe(shape=(2,), epochs=1)


def factory(
    train: Tensor | None = None, latent: int = 2, alpha: float = 1, wide: bool = False, name: str = "a",
    sizes: Sequence[int] = (), rates: tuple[float, ...] = (0.5,), beta: float | None = None, plain=3,
    pair=(1, 2), act: Callable[[float], float] = abs, mean: Tensor | None = None, **rest,
):  # fmt: skip
    return train, {"latent": latent, "alpha": alpha, "sizes": sizes}


SYSTEM = System("mine", "of points", factory, RECIPE)
DEFAULTS = {
    "latent": 2, "alpha": 1.0, "wide": False, "name": "a", "sizes": (), "rates": (0.5,), "beta": None, "plain": 3,
    "pair": (1, 2),
}  # fmt: skip


def test_plain_arguments_are_options_with_defaults():
    assert SYSTEM.defaults == DEFAULTS
    assert type(SYSTEM.defaults["alpha"]) is float
    assert {name: system.defaults for name, system in SYSTEMS.items() if "burda" in name} == {
        "burda_vae": {"latent": 50},
        "burda2_vae": {"first": 100, "second": 50},
    }
    assert "activation" not in SYSTEMS["mnist_sigma_vae"].defaults


def test_options_are_converted_to_their_types():
    given = {"latent": np.int64(3), "alpha": 2, "sizes": [1, 2], "beta": 4}
    assert SYSTEM.options(given) == {**DEFAULTS, "latent": 3, "alpha": 2.0, "sizes": (1, 2), "beta": 4.0}
    text = {"latent": "3", "alpha": "2", "wide": "true", "name": "3", "sizes": "1, 2", "rates": "", "beta": "None"}
    assert SYSTEM.parse_options(text) == {
        "latent": 3, "alpha": 2.0, "wide": True, "name": "3", "sizes": (1, 2), "rates": (), "beta": None,
    }  # fmt: skip
    assert SYSTEM.parse_options({"plain": "5", "pair": "3,4"}) == {"plain": 5, "pair": (3, 4)}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"latnt": 3}, BadValue, "unknown model option 'latnt': did you mean 'latent'?"),
        ({"train": 3}, BadValue, "unknown model option 'train'"),
        ({"act": abs}, BadValue, "unknown model option 'act'"),
        ({3: 3}, BadType, "a model option is 3: it must be a string"),
        ({"latent": True}, BadType, "model.latent is True: it must be a whole number"),
        ({"latent": 1.5}, BadType, "model.latent is 1.5: it must be a whole number"),
        ({"latent": "3"}, BadType, "model.latent is '3': it must be a whole number"),
        ({"wide": 1}, BadType, "model.wide is 1: it must be True or False"),
        ({"alpha": float("nan")}, BadValue, "model.alpha is nan: it must be finite"),
        ({"sizes": (1, "a")}, BadType, "model.sizes[1] is 'a': it must be a whole number"),
        ({"sizes": 3}, BadType, "model.sizes is 3: it must be a list"),
        (3, BadType, "given is 3: it must be a dict"),
    ],
)
def test_a_wrong_option_is_an_error_of_one_line(given, error, message):
    with pytest.raises(error) as raised:
        SYSTEM.options(given)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_only_a_factory_that_takes_train_gets_the_data():
    x, seen = torch.ones(3), []

    def with_train(train: Tensor | None = None, latent: int = 2) -> fv.VAE:
        seen.append(train)
        return fv.models.mnist_vae(latent)

    assert System("mine", "", with_train, RECIPE).build(x, latent=5).latent == 5
    assert seen[0] is x
    assert SYSTEMS["mnist_vae"].build(x, latent=5).latent == 5
    assert SYSTEMS["mnist_vae"].build().latent == 2


def test_a_model_that_cannot_be_made_is_an_error_of_one_line():
    def fails(latent: int = 2) -> fv.VAE:
        return latent / 0  # type: ignore[return-value]

    line = fails.__code__.co_firstlineno + 1
    with pytest.raises(BadData, match=f"the model of mine cannot be made: ZeroDivisionError in line {line}: division"):
        System("mine", "", fails, RECIPE).build()
    with pytest.raises(BadType, match="the model of mine is 3: it must return"):
        System("mine", "", lambda: 3, RECIPE).build()  # type: ignore[arg-type,return-value]
    with pytest.raises(BadValue, match="latent is 0: it must be at least 1"):
        SYSTEMS["burda_vae"].build(latent=0)


def test_an_argument_needs_a_default():
    def needs(inputs: int): ...

    with pytest.raises(BadType, match="the model of mine has an argument 'inputs' without a default: give it one"):
        System("mine", "", needs, RECIPE).options({})


def test_annotations_may_be_text_that_cannot_be_read():
    def wrong(latent: "NoSuchType" = 3): ...  # noqa: F821

    with pytest.raises(BadType, match="the arguments of the model of mine cannot be read: NameError"):
        System("mine", "", wrong, RECIPE).options({})


def test_a_system_without_options():
    with pytest.raises(BadValue, match="mine has no model options"):
        System("mine", "", lambda: None, RECIPE).options({"latent": 3})


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a:b", "../a", "-a", "a\n"])
def test_a_name_can_name_a_file(name):
    with pytest.raises(BadValue, match="it must be a name of letters, digits"):
        System(name, "", factory, RECIPE)


def test_every_option_of_a_named_system_can_be_given():
    for system in SYSTEMS.values():
        assert system.options(system.defaults) == system.defaults
        model = system.build(torch.zeros(1, *(n or 16 for n in system.recipe.shape)), **system.defaults)
        assert isinstance(model, fv.VAE)
