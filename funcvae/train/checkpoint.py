"""Tensors on disk, as safetensors: a format that cannot run code. A file appears whole or not at all.

A checkpoint is one such file. Its metadata hold a JSON object under "funcvae":

format     of the file: 1
sha256     of its tensors, as `tree.sha256` takes it
structure  of the tree, with "DTYPE [SHAPE]" for each leaf; a NamedTuple as a list
about      what else the writer had to say, such as how far its other files went
"""

import json
from pathlib import Path
from typing import Any

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


def save(path: Path, tree_: Tree, about: dict[str, Any]) -> Path:
    """Writes a tree of tensors, such as a TrainState; equal ones give equal bytes.

    Args:
        path: the file.
        tree_: dicts, lists, tuples and NamedTuples of tensors. A tensor is named by its path in them, as in
            "params/encoder/linear1.weight".
        about: what goes into JSON beside it.

    Raises:
        BadType: a leaf that is no tensor, or what JSON cannot hold.
        BadValue: two leaves of one path.
    """
    if not isinstance(about, dict):
        raise BadType(f"about is {checks.describe(about)}: it must be a dict")
    sha256 = tree.sha256(_named_tensors(tree_))
    try:
        head = json.dumps({"format": FORMAT, "sha256": sha256, "structure": _structure(tree_), "about": about})
    except (TypeError, ValueError, RecursionError) as error:
        raise BadType(f"the tree's keys, or about, cannot be written as JSON: {checks.one_line(str(error))}") from None
    return files.write(checks.path("path", path), _safetensors(tree_, {"funcvae": head}))


def load(path: Path, like: Tree) -> tuple[Tree, dict[str, Any]]:
    """Reads what `save` wrote: the tree, into the structure and onto the devices of `like`; and `about`.

    Raises:
        Missing: there is no such file.
        BadData: the file is damaged, is of another model, or was written by a later version.
    """
    loaded, metadata = _read(checks.path("path", path), like)
    head = files.parse_json(metadata.get("funcvae", "").encode(), f"{path}: its head")
    if head.get("format") != FORMAT:
        raise BadData(f"{path} has format {head.get('format')!r}, this version of funcvae reads format {FORMAT}")
    if head.get("structure") != _structure(like):
        raise BadData(f"{path} holds the parameters of another model, or of another optimizer")
    _check_sha256(path, loaded, head.get("sha256"))
    if not isinstance(head.get("about"), dict):
        raise BadData(f"{path} is damaged: it lacks what the writer had to say")
    return loaded, head["about"]


def path_of(folder: Path, step: int) -> Path:
    """The checkpoint of a step in a folder; names sort as steps do."""
    step = checks.integer("step", step, 0, 10**12 - 1)
    return checks.path("folder", folder) / f"step-{step:012d}.safetensors"


def in_folder(folder: Path) -> dict[int, Path]:
    """The checkpoints in a folder by the number of steps made, in ascending order."""
    paths = sorted(
        path for path in checks.path("folder", folder).glob("step-" + "[0-9]" * 12 + ".safetensors") if path.is_file()
    )
    return {int(path.stem.removeprefix("step-")): path for path in paths}


def prune(folder: Path, keep: int) -> None:
    """Removes all checkpoints in a folder but the newest `keep`, of which there is one at least."""
    paths = list(in_folder(folder).values())
    for path in paths[: -max(1, checks.integer("keep", keep))]:
        path.unlink(missing_ok=True)


def save_params(path: Path, params: Params, state: State) -> None:
    """Writes params and state, with their SHA-256; equal ones give equal bytes.

    The tensors are named by their paths, as in "params/encoder/linear1.weight".
    """
    tree_ = {"params": params, "state": state}
    files.write(checks.path("path", path), _safetensors(tree_, {"sha256": tree.sha256(_named_tensors(tree_))}))


def load_params(path: Path, params: Params, state: State) -> tuple[Params, State]:
    """Reads what `save_params` wrote, into the structure and onto the device of the given params and state.

    Raises:
        Missing: there is no such file.
        BadData: the file is damaged, or is of another model.
    """
    loaded, metadata = _read(checks.path("path", path), {"params": params, "state": state})
    _check_sha256(path, loaded, metadata.get("sha256"))
    return loaded["params"], loaded["state"]


def has_params(path: Path, params: Path) -> bool:
    """Whether the checkpoint of one file has the parameters and state of another; not where either cannot be read."""
    if not all(checks.path("path", file).is_file() for file in (path, params)):  # a pipe would wait for its writer
        return False
    try:
        with safe_open(path, framework="pt") as whole, safe_open(params, framework="pt") as part:
            return all(torch.equal(whole.get_tensor(name), part.get_tensor(name)) for name in part.keys())  # noqa: SIM118
    except Exception:  # as in `_read`
        return False


_HEADER_BYTES = 2**20  # names, shapes and metadata of a file take less


def _named_tensors(tree_: Tree) -> dict[str, torch.Tensor]:
    """The tree's tensors by path."""
    named = tree.named_leaves(tree_)
    for name, leaf in named.items():
        checks.concrete(checks.one_line(name, 100), leaf)
    if len(named) < len(tree.leaves(tree_)):
        raise BadValue("two tensors of the tree have one path: keys must not be such as 'a/b' beside 'a' with a 'b'")
    return named


def _check_sha256(path: Path, loaded: Tree, expected: Any) -> None:
    if expected != tree.sha256(_named_tensors(loaded)):
        raise BadData(f"{path} is damaged: its tensors do not have the SHA-256 that it names")


def _structure(tree_: Tree) -> Any:
    """The tree in JSON's types, with a description in place of each leaf."""
    return json.loads(json.dumps(tree.map(lambda t: f"{t.dtype} {list(t.shape)}", tree_)))


def _safetensors(tree_: Tree, metadata: dict[str, str]) -> bytes:
    """The content of the file that holds a tree."""
    tensors = {name: leaf.detach().cpu().contiguous() for name, leaf in _named_tensors(tree_).items()}
    return as_safetensors(tensors, metadata=metadata)


def _read(path: Path, like: Tree) -> tuple[Tree, dict[str, str]]:
    """The tree in a file and its metadata. Nothing is read before names and sizes are known to be those of `like`."""
    wanted = _named_tensors(like)
    if not path.is_file():
        raise Missing(f"{path}: no such file")
    largest = sum(leaf.nbytes for leaf in wanted.values()) + _HEADER_BYTES
    if path.stat().st_size > largest:
        raise BadData(f"{path}: holds the parameters of another model, for it is longer than this one's could be")
    stored = {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if set(file.keys()) == wanted.keys():
                stored = {name: file.get_tensor(name) for name in wanted}
    except Exception as error:  # whatever damaged bytes may cause
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadData(f"{path}: not a whole safetensors file ({reason})") from None
    described = {name: (t.shape, t.dtype) for name, t in stored.items()}
    if described != {name: (t.shape, t.dtype) for name, t in wanted.items()}:
        raise BadData(f"{path}: holds the parameters of another model")
    # Copies: the file's own bytes lie at any address, and where a tensor lies may change the bits of its products.
    return tree.from_named({name: t.clone().to(wanted[name].device) for name, t in stored.items()}, like), metadata
