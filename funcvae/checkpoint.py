"""Parameters on disk, as safetensors: a format that holds tensors and cannot run code."""

from pathlib import Path

from safetensors.torch import load, save

from funcvae import files, tree
from funcvae.errors import BadData, Missing
from funcvae.module import Params, State


def save_params(path: Path, params: Params, state: State) -> None:
    """Writes params and state; equal ones give equal bytes. The file appears whole or not at all.

    The tensors are named by their paths, as in "params/encoder/linear1.weight".
    """
    named = tree.named_leaves({"params": params, "state": state})
    files.write(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}))


def load_params(path: Path, params: Params, state: State) -> tuple[Params, State]:
    """Reads what `save_params` wrote, into the structure and onto the device of the given params and state.

    Raises:
        Missing: there is no such file.
        BadData: the file is damaged, or is of another model.
    """
    if not path.is_file():
        raise Missing(f"{path}: no such file")
    like = {"params": params, "state": state}
    try:
        stored = load(path.read_bytes())
    except Exception as error:  # the format's own error class is not public
        raise BadData(f"{path}: not a whole safetensors file ({error})") from None
    wanted = tree.named_leaves(like)
    if {name: (t.shape, t.dtype) for name, t in wanted.items()} != {
        name: (t.shape, t.dtype) for name, t in stored.items()
    }:
        raise BadData(f"{path}: holds the parameters of another model")
    loaded = tree.from_named({name: t.to(wanted[name].device) for name, t in stored.items()}, like)
    return loaded["params"], loaded["state"]
