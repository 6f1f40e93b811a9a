"""Pytrees of tensors: dicts, lists, tuples and NamedTuples, nested. The only user of torch's pytree module."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

Tree = Any


def map(f: Callable[..., Any], *trees: Tree) -> Tree:
    """f of each leaf, or of the leaves at the same place in trees of one structure."""
    return _pytree.tree_map(f, *trees)


def leaves(tree: Tree) -> list[Tensor]:
    """The tree's tensors, in a fixed order."""
    return _pytree.tree_leaves(tree)


def structure(tree: Tree) -> Any:
    """The tree without its leaves; two trees can be mapped over together when theirs are equal."""
    return _pytree.tree_structure(tree)


def named_leaves(tree: Tree) -> dict[str, Tensor]:
    """The tree's tensors by their paths, as in "encoder/linear1.weight"."""

    def name(step: Any) -> str:  # a dict's key, a tuple's index or a NamedTuple's field
        return str(*astuple(step))

    return {"/".join(name(step) for step in path): leaf for path, leaf in _pytree.tree_flatten_with_path(tree)[0]}


def from_named(named: dict[str, Tensor], like: Tree) -> Tree:
    """The tree of the same structure as `like` whose leaves have these names; the inverse of `named_leaves`."""
    return _pytree.tree_unflatten([named[name] for name in named_leaves(like)], structure(like))


def zeros_like(tree: Tree) -> Tree:
    """A tree of zeros of the same structure, shapes and dtypes."""
    return map(torch.zeros_like, tree)


def norm(tree: Tree) -> Tensor:
    """The Euclidean norm of all the tree's numbers together, in whatever order a dict holds them."""
    return torch.stack([leaf.norm() for leaf in leaves(tree)]).sort().values.norm()


def sha256(tree: Tree) -> str:
    """The SHA-256 of the path, dtype, shape and bytes of every leaf, in hexadecimal: equal for equal bits."""
    digest = hashlib.sha256()
    for name, leaf in sorted(named_leaves(tree).items()):
        flat = leaf.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {leaf.dtype} {list(leaf.shape)}\n".encode())
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def like(leaves: Sequence[Tensor], tree: Tree) -> Tree:
    """The tree of the same structure and shapes whose leaves are these, flattened or not."""
    named = named_leaves(tree)
    shaped = [leaf.reshape(old.shape) for leaf, old in zip(leaves, named.values(), strict=True)]
    return _pytree.tree_unflatten(shaped, structure(tree))
