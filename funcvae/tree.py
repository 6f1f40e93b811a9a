"""Pytrees of tensors: dicts, lists, tuples and NamedTuples, nested. The only user of torch's pytree module."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from funcvae._support import checks
from funcvae.errors import BadType, BadValue

__all__ = [
    "Tree", "checked", "flatten", "from_named", "leaves", "like", "map", "named_leaves", "norm", "rows", "sha256",
    "structure", "zeros_like",
]  # fmt: skip

Tree = Any


def map(f: Callable[..., Any], *trees: Tree) -> Tree:
    """f of each leaf, or of the leaves at the same place in trees of one structure."""
    checks.function("f", f)
    found, kind = _rows(trees)
    return kind.unflatten([f(*row) for row in found])


def rows(*trees: Tree) -> list[tuple[Any, ...]]:
    """The leaves at each place, together, of trees of one structure; whatever order their dicts have."""
    return _rows(trees)[0]


def _rows(trees: tuple[Tree, ...]) -> tuple[list[tuple[Any, ...]], Any]:
    if not trees:
        raise BadValue("there is no tree to map over")
    first, kind = flatten(trees[0])
    try:
        return list(zip(first, *(kind.flatten_up_to(tree) for tree in trees[1:]), strict=True)), kind
    except (ValueError, TypeError) as error:
        reason = checks.one_line(str(error))
        raise BadValue(f"trees of different structures cannot be mapped over together: {reason}") from None


def leaves(tree: Tree) -> list[Tensor]:
    """The tree's tensors, in a fixed order."""
    return _pytree.tree_leaves(tree)


def flatten(tree: Tree) -> tuple[list[Tensor], Any]:
    """The tree's leaves and its structure, whose `unflatten(leaves)` is the tree again."""
    return _pytree.tree_flatten(tree)


def structure(tree: Tree) -> Any:
    """The tree without its leaves; two trees can be mapped over together when theirs are equal."""
    return _pytree.tree_structure(tree)


def checked(tree: Tree, name: str = "the tree") -> Tree:
    """The tree itself, if its leaves are tensors: raises BadType where one is not."""
    for leaf in leaves(tree):
        checks.tensor(f"a leaf of {name}", leaf)
    return tree


def named_leaves(tree: Tree) -> dict[str, Tensor]:
    """The tree's tensors by their paths, as in "encoder/linear1.weight"."""

    def name(step: Any) -> str:  # a dict's key, a tuple's index or a NamedTuple's field
        return str(*astuple(step))

    return {"/".join(name(step) for step in path): leaf for path, leaf in _pytree.tree_flatten_with_path(tree)[0]}


def from_named(named: dict[str, Tensor], like: Tree) -> Tree:
    """The tree of the same structure as `like` whose leaves have these names; the inverse of `named_leaves`."""
    if not isinstance(named, Mapping):
        raise BadType(f"named is {checks.describe(named)}: it must be a dict of tensors by name")
    names = named_leaves(like)
    if missing := [name for name in names if name not in named]:
        raise BadValue(checks.one_line(f"named lacks {', '.join(missing)}"))
    return _pytree.tree_unflatten([named[name] for name in names], structure(like))


def zeros_like(tree: Tree) -> Tree:
    """A tree of zeros of the same structure, shapes and dtypes."""
    return map(torch.zeros_like, checked(tree))


def norm(tree: Tree) -> Tensor:
    """The Euclidean norm of all the tree's numbers together, in whatever order a dict holds them."""
    norms = [checks.tensor("a leaf", leaf, floating=True).norm() for leaf in leaves(tree)]
    if not norms:
        raise BadValue("the tree has no leaves, and so no norm")
    return torch.stack(norms).sort().values.norm()


def sha256(tree: Tree) -> str:
    """The SHA-256 of the path, dtype, shape and bytes of every leaf, in hexadecimal: equal for equal bits."""
    digest = hashlib.sha256()
    for name, leaf in sorted(named_leaves(tree).items()):
        flat = checks.concrete(name, leaf).detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {leaf.dtype} {list(leaf.shape)}\n".encode())
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def like(leaves: Sequence[Tensor], tree: Tree) -> Tree:
    """The tree of the same structure and shapes whose leaves are these, flattened or not."""
    if not isinstance(leaves, Sequence):
        raise BadType(f"leaves is {checks.describe(leaves)}: it must be a list of tensors")
    named = checked(named_leaves(tree))
    sizes, wanted = [[leaf.numel() for leaf in checked(some)] for some in (list(leaves), list(named.values()))]
    if sizes != wanted:
        raise BadValue(checks.one_line(f"the leaves have sizes {sizes}: the tree's are {wanted}"))
    shaped = [leaf.reshape(old.shape) for leaf, old in zip(leaves, named.values(), strict=True)]
    return _pytree.tree_unflatten(shaped, structure(tree))
