"""Trees of tensors: mapping, names and norms."""

import re
from collections import OrderedDict, defaultdict, deque
from pathlib import Path

import pytest
import torch
from torch.utils import _pytree

import funcvae
from funcvae import tree
from funcvae.errors import BadValue
from funcvae.optim import AdamState


def a_tree():
    return {
        "encoder": {"linear1.weight": torch.arange(6.0).reshape(2, 3), "bn": torch.tensor(3)},
        "pair": [torch.ones(2, dtype=torch.float64), (torch.zeros(()),)],
        "adam": AdamState(torch.tensor(1), {"w": torch.ones(1)}, {"w": torch.zeros(1)}),
    }


def test_names_are_paths():
    assert list(tree.named_leaves(a_tree())) == [
        "encoder/linear1.weight",
        "encoder/bn",
        "pair/0",
        "pair/1/0",
        "adam/step",
        "adam/m/w",
        "adam/v/w",
    ]


def test_leaves_are_those_of_torchs_pytree_in_its_order():
    x = torch.ones(1)
    few = [None, 3, {}, [], (), x.shape, AdamState, [a_tree()]]
    odd = [few, OrderedDict(b=x, a=2), defaultdict(list, a=[x]), deque([x])]
    found, expected = tree.leaves(odd), _pytree.tree_leaves(odd)
    assert len(found) == len(expected)
    assert all(a is b for a, b in zip(found, expected, strict=True))


def test_from_named_inverts_named_leaves_in_any_order():
    t = a_tree()
    named = dict(reversed(tree.named_leaves(t).items()))
    back = tree.from_named(named, t)
    assert tree.structure(back) == tree.structure(t)
    assert isinstance(back["adam"], AdamState)
    assert all(a is b for a, b in zip(tree.leaves(back), tree.leaves(t), strict=True))


def test_map_keeps_the_structure_and_takes_several_trees():
    t = a_tree()
    doubled = tree.map(torch.add, t, t)
    assert tree.structure(doubled) == tree.structure(t)
    assert all(torch.equal(d, 2 * x) for d, x in zip(tree.leaves(doubled), tree.leaves(t), strict=True))


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_rows_are_those_of_torchs_pytree(kind):
    first = kind(a=torch.ones(1), b={"c": torch.ones(2), "d": (torch.ones(3), [torch.ones(4)])})
    other = kind(b={"d": (torch.ones(30), [torch.ones(40)]), "c": 20}, a=torch.ones(10))
    leaves, structure = _pytree.tree_flatten(first)
    known = list(zip(leaves, structure.flatten_up_to(other), strict=True))
    found = tree.rows(first, other)
    assert [[id(x) for x in row] for row in found] == [[id(x) for x in row] for row in known]


def test_rows_of_nested_dicts_are_matched_by_name():
    a, b, c = torch.ones(3).unbind()
    first, other = {"a": a, "b": {"c": b, "d": c}}, {"b": {"d": 3 * c, "c": 2 * b}, "a": 4 * a}
    assert tree.rows(first, other) == [(1, 4), (1, 2), (1, 3)]


@pytest.mark.parametrize("other", [{"a": 1.0, "b": {}}, {"a": 1.0}, {"a": 1.0, "c": {"c": 1.0}}, [1.0, 2.0]])
def test_rows_of_different_structures_are_refused(other):
    with pytest.raises(BadValue, match="different structures"):
        tree.rows({"a": torch.ones(1), "b": {"c": torch.ones(1)}}, other)


def test_map_matches_dict_entries_by_key():
    assert tree.map(lambda a, b: (a, b), {"a": 1, "b": 2}, {"b": 20, "a": 10}) == {"a": (1, 10), "b": (2, 20)}


def test_zeros_like_keeps_shapes_and_dtypes():
    t = a_tree()
    for zero, x in zip(tree.leaves(tree.zeros_like(t)), tree.leaves(t), strict=True):
        assert (zero.shape, zero.dtype, zero.count_nonzero().item()) == (x.shape, x.dtype, 0)


def test_norm_equals_that_of_all_numbers_in_one_vector():
    torch.manual_seed(0)
    t = {"a": torch.randn(3, 4, dtype=torch.float64), "b": [torch.randn((), dtype=torch.float64)]}
    whole = torch.cat([leaf.flatten() for leaf in tree.leaves(t)])
    torch.testing.assert_close(tree.norm(t), whole.square().sum().sqrt(), rtol=1e-14, atol=0)
    assert tree.norm(t) != sum(leaf.norm() for leaf in tree.leaves(t))  # not the sum of norms


def test_only_the_tree_module_uses_torchs_pytree():
    sources = Path(funcvae.__file__).parent.rglob("*.py")
    users = [p.name for p in sources if re.search(r"import _pytree|_pytree\.", p.read_text())]
    assert users == ["tree.py"]
