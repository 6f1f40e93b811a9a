"""Checkpoints: trees of tensors in safetensors files, which cannot run code. Writes are atomic.

The metadata of a checkpoint hold a JSON object under "funcvae":

format     version of the format: 1
sha256     `tree.sha256` of the tensors
structure  the tree, with "DTYPE [SHAPE]" for each leaf and a list for each NamedTuple
about      further JSON from the writer, such as the size of its other files
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors import safe_open
from safetensors.torch import save as as_safetensors

from funcvae import tree
from funcvae._support import checks, files
from funcvae.errors import BadData, BadType, BadValue, Missing
from funcvae.modules import Params, State
from funcvae.tree import Tree

__all__ = ["has_params", "in_folder", "load", "load_params", "path_of", "prune", "save", "save_params"]

FORMAT = 1


@checks.arguments
def save(path: Path, tree_: Tree, about: dict[str, Any], *, over: bool = True) -> Path:
    """Writes a tree of tensors, such as a TrainState, and returns the path. Equal trees give equal bytes.

    Args:
        tree_: dicts, lists, tuples and NamedTuples of tensors. The path of a tensor in the tree is its name, as in
            "params/encoder/linear1.weight".
        about: JSON to store with the tree.
        over: replace a file with other content. Otherwise write beside it, as NAME-2.

    Raises:
        BadType: a leaf is not a tensor, or JSON cannot represent `about` or the keys of the tree.
        BadValue: two leaves have the same path.
        NotWritten: the file cannot be written.
    """
    sha256 = tree.sha256(_named_tensors(tree_))
    try:
        head = json.dumps({"format": FORMAT, "sha256": sha256, "structure": _structure(tree_), "about": about})
    except (TypeError, ValueError, RecursionError) as error:
        raise BadType(f"the tree's keys, or about, cannot be written as JSON: {checks.one_line(str(error))}") from None
    return files.write_beside(path, _safetensors(tree_, {"funcvae": head}), over=over)


@checks.arguments
def load(path: Path, like: Tree) -> tuple[Tree, dict[str, Any]]:
    """Reads the tree and `about` that `save` wrote. The tree has the structure and devices of `like`.

    Raises:
        Missing: no such file.
        BadData: the file is damaged, belongs to another model, or was written by a later version.
    """
    loaded, metadata, sha256 = _read(path, like)
    head = _head(path, metadata)
    if head.get("structure") != _structure(like):
        raise BadData(f"{path} holds the parameters of another model, or of another optimizer")
    _check_sha256(path, sha256, head)
    if not isinstance(head.get("about"), dict):
        raise BadData(f"{path} is damaged: its metadata have no object 'about'")
    return loaded, head["about"]


@checks.arguments
def path_of(folder: Path, step: Annotated[int, checks.within(0, 10**12 - 1)]) -> Path:
    """The path of the checkpoint after `step` steps; names sort in the order of steps."""
    return folder / f"step-{step:012d}.safetensors"


@checks.arguments
def in_folder(folder: Path) -> dict[int, Path]:
    """The checkpoints in a folder by their number of steps, in ascending order."""
    paths = sorted(path for path in folder.glob("step-" + "[0-9]" * 12 + ".safetensors") if path.is_file())
    return {int(path.stem.removeprefix("step-")): path for path in paths}


@checks.arguments
def prune(folder: Path, keep: int) -> None:
    """Removes all checkpoints in a folder except the newest `keep` (at least one)."""
    for path in list(in_folder(folder).values())[: -max(1, keep)]:
        path.unlink(missing_ok=True)


@checks.arguments
def save_params(path: Path, params: Params, state: State) -> None:
    """Writes params and state with their SHA-256, named as by `save`. Equal trees give equal bytes."""
    tree_ = {"params": params, "state": state}
    files.write(path, _safetensors(tree_, {"sha256": tree.sha256(_named_tensors(tree_))}))


@checks.arguments
def load_params(path: Path, params: Params, state: State) -> tuple[Params, State]:
    """Reads params and state, with the structure and device of the given ones.

    Args:
        path: a file of `save_params`, or the checkpoint of a TrainState, whose optimizer need not be known.

    Raises:
        Missing: no such file.
        BadData: the file is damaged, or belongs to another model.
    """
    loaded, metadata, sha256 = _read(path, {"params": params, "state": state}, _MOST_COPIES)
    _check_sha256(path, sha256, _head(path, metadata) if "funcvae" in metadata else metadata)
    return loaded["params"], loaded["state"]


@checks.arguments
def has_params(path: Path, params: Path) -> bool:
    """Whether a checkpoint has the parameters and state of the file `params`; False if either cannot be read."""
    if not (path.is_file() and params.is_file()):  # reading a pipe would block
        return False
    try:
        with safe_open(path, framework="pt") as whole, safe_open(params, framework="pt") as part:
            return all(torch.equal(whole.get_tensor(name), part.get_tensor(name)) for name in part.keys())  # noqa: SIM118
    except Exception:  # as in `_read`
        return False


_HEADER_BYTES = 2**20  # an upper bound for the names, shapes and metadata of a file
_MOST_COPIES = 100  # an upper bound for the size of a TrainState, in sizes of its params and state


def _named_tensors(tree_: Tree) -> dict[str, torch.Tensor]:
    named = tree.named_leaves(tree_)
    for name, leaf in named.items():
        checks.concrete(checks.one_line(name, 100), leaf)
    if len(named) < len(tree.leaves(tree_)):
        raise BadValue(
            "two tensors of the tree have the same path: a key 'a/b' cannot stand next to a key 'a' that holds 'b'"
        )
    return named


def _head(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    head = files.parse_json(metadata.get("funcvae", "").encode(), f"{path}: its head")
    if head.get("format") != FORMAT:
        raise BadData(f"{path} has format {head.get('format')!r}: this version of funcvae reads format {FORMAT}")
    return head


def _check_sha256(path: Path, sha256: str, head: Mapping[str, Any]) -> None:
    if head.get("sha256") != sha256:
        raise BadData(f"{path} is damaged: the SHA-256 of its tensors is wrong")


def _structure(tree_: Tree) -> Any:
    """The tree as JSON, with a description in place of each leaf."""
    return json.loads(json.dumps(tree.map(lambda t: f"{t.dtype} {list(t.shape)}", tree_)))


def _safetensors(tree_: Tree, metadata: dict[str, str]) -> bytes:
    tensors = {name: leaf.detach().cpu().contiguous() for name, leaf in _named_tensors(tree_).items()}
    return as_safetensors(tensors, metadata=metadata)


def _read(path: Path, like: Tree, copies: int = 1) -> tuple[Tree, dict[str, str], str]:
    """The tree and the metadata in a file, and the SHA-256 of its tensors.

    Checks names and sizes against those of `like` before it reads tensors. If `copies` exceeds 1, the file may be so
    many times as large as `like`, and have more tensors than those under the keys of `like`.
    """
    wanted = _named_tensors(like)
    if not path.is_file():
        raise Missing(f"{path}: no such file")
    largest = copies * sum(leaf.nbytes for leaf in wanted.values()) + _HEADER_BYTES
    if path.stat().st_size > largest:
        raise BadData(f"{path} holds the parameters of another model: the file is too long for this one")
    stored = {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = set(file.keys())
            if {name for name in names if copies == 1 or name.partition("/")[0] in like} == wanted.keys():
                stored = {name: file.get_tensor(name) for name in names}
    except Exception as error:  # damaged bytes may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadData(f"{path} is not a complete safetensors file ({reason})") from None
    read = {name: stored[name] for name in wanted if stored}
    described = {name: (t.shape, t.dtype) for name, t in read.items()}
    if described != {name: (t.shape, t.dtype) for name, t in wanted.items()}:
        raise BadData(f"{path} holds the parameters of another model")
    # Copy the tensors: in the file's bytes they may be unaligned, and alignment may change the bits of their products.
    copied = {name: t.clone().to(wanted[name].device) for name, t in read.items()}
    return tree.from_named(copied, like), metadata, tree.sha256(stored)
