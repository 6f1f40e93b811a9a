"""Random layers are found in the code of forward, and nothing else is taken for one."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import dropout as drop

import funcvae as fv
from funcvae import models
from funcvae._support.finding_draws import draws


def noisy(x):
    return x + torch.randn_like(x)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout, self.normal, self.helper = nn.Linear(2, 2), nn.Linear(2, 2), noisy


def layer(forward, base=Layer, **attributes):
    return type("Made", (base,), {"forward": forward, **attributes})()


def outer(self, x):
    def inner():
        return torch.rand(3)

    return x + inner()


class Base(Layer):
    def forward(self, x):
        return x * torch.rand(1)


class Derived(Base):
    def forward(self, x):
        return super().forward(x) + 1


class Inherits(Base):
    pass


DRAWING = {
    "function": layer(lambda self, x: F.dropout(x, 0.5, self.training)),
    "imported": layer(lambda self, x: drop(x)),
    "like": layer(lambda self, x: torch.randn_like(x)),
    "method of a tensor": layer(lambda self, x: x.new_empty(3).bernoulli_(0.5)),
    "distribution": layer(lambda self, x: torch.distributions.Normal(x, 1).rsample()),
    "helper": layer(lambda self, x: noisy(x)),
    "attribute": layer(lambda self, x: self.helper(x)),
    "method": layer(lambda self, x: self.add(x), add=lambda self, x: noisy(x)),
    "nested": layer(outer),
    "comprehension": layer(lambda self, x: [torch.randn(2) for _ in x]),
    "super": Derived(),
    "inherited": Inherits(),
    "attention": layer(lambda self, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)),
    "said": layer(lambda self, x: x, draws_in_forward=True),
    "torch": nn.LSTM(3, 3, 2, dropout=0.1),
}
QUIET = {
    "layers with names of functions": layer(lambda self, x: self.dropout(self.normal(x))),
    "attention": layer(lambda self, x: F.scaled_dot_product_attention(x, x, x)),
    "funcvae": layer(lambda self, x: fv.random.normal(fv.random.key(0), (3,))),
    "said": layer(lambda self, x: torch.randn_like(x), draws_in_forward=False),
    "another attribute": layer(lambda self, x: x, draws_in_forward=3),
    "torch": nn.Dropout(0.0),
}


@pytest.mark.parametrize("name", DRAWING)
def test_random_code_is_found(name):
    assert draws(DRAWING[name])


@pytest.mark.parametrize("name", QUIET)
def test_other_code_is_not(name):
    assert not draws(QUIET[name])


def test_the_named_systems_draw_nothing():
    for make in (models.mnist_bn_vae, models.cifar_resnet_vae, models.burda_vae, models.sbn_vae):
        _, state = make().init(fv.random.key(0))
        assert not any("random_key" in part for part in state.values())
    assert not draws(torchvision.models.resnet18())
