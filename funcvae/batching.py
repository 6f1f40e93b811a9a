"""Maps a function over a batch axis by `vmap`, or without it where `vmap` cannot batch the function."""

import warnings
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from funcvae import tree
from funcvae._support import checks
from funcvae.modules import KEY, Apply, Params, State, advance, for_part
from funcvae.tree import Tree

__all__ = ["Unbatched", "from_sample", "of_points", "over_samples", "vmap_or_loop"]

FIRST = "first sample"
"""The name in a decoder's state, beside its key, of the number of its first sample; `over_samples` takes it out."""


class Unbatched(UserWarning):
    """`vmap` cannot batch a function, which runs another way, with the same numbers up to rounding."""


def over_samples(network: Apply, frozen: Collection[str] = ()) -> Callable[..., tuple[Any, State]]:
    """Makes a network of z [B, Z] one of z [N, B, Z]. Buffers that it changes are averaged over the samples.

    Further inputs [B, ...], such as a condition, are the same for all samples.

    The first choice is `vmap`, which lacks rules for some operators, such as recurrent layers and boolean masks. A
    trial on a few rows of the first z decides for both modes, once. If `vmap` fails, all samples run in one call on
    [N·B, Z] if each row of the output depends only on the same row of z, and the new state on no row (as with spectral
    norm, but not with BatchNorm in training mode). Otherwise they run one after another.

    If the network has a key, sample k draws from one of its own in training mode, from `funcvae.modules.for_part` with
    k: the same in each way, and whether the samples come together or in parts (`from_sample`). The new key is that of
    one call.

    Args:
        frozen: the names in the state of what the network does not change.

    Warns:
        Unbatched: `vmap` cannot batch the network.
    """
    ways = dict[bool, Way]()

    def apply(params: Params, state: State, *inputs: Any, train: bool) -> tuple[Any, State]:
        out, new = network(params, state, *inputs, train=train)
        return out, {name: v for name, v in new.items() if name not in frozen and name != KEY}

    def sampled(params: Params, state: State, z: Tensor, *shared: Tree, train: bool) -> tuple[Any, State]:
        state, own = _own_keys(state, len(z), train)
        if not (ways or torch.compiler.is_compiling()):
            decide(params, state, z, shared)
        if len(z) == 1:  # the same in each way, without its overhead
            out, new = apply(params, {**state, **_of(own, 0)}, z[0], *shared, train=train)
            out = tree.map(lambda t: t.unsqueeze(0), out)
        else:
            out, new = ways.get(train, _vmapped)(_Call(apply, params, state, own, train), z, shared)
        new = {**state, **new}
        return out, advance(new) if train else new

    def decide(params: Params, state: State, z: Tensor, shared: Shared) -> None:
        found = {train: _trial(_Call(apply, params, state, {}, train), z, shared) for train in _MODES}
        if any(way for way, _ in found.values()):  # otherwise the call itself reports what is wrong with z
            ways.update({train: way or _vmapped for train, (way, _) in found.items()})
        if reasons := [reason for _, reason in found.values() if reason]:
            how = [f"{_NAMES[way]} in {_MODES[train]} mode" for train, way in ways.items() if way in _NAMES]
            text = f"vmap cannot batch the decoder: its samples run {' and '.join(how)} ({reasons[0]})"
            warnings.warn(text, Unbatched, stacklevel=2)

    return sampled


def from_sample(state: State, first: int | Tensor) -> State:
    """The state of a model for a part of the samples: the number of the first of them decides what its decoder draws.

    The state that the model returns has no such number.
    """
    decoder = state.get("decoder", {})
    if KEY not in decoder:
        return state
    first = first if isinstance(first, Tensor) else torch.full((), first, device=decoder[KEY].device)
    return {**state, "decoder": {**decoder, FIRST: first}}


def of_points(state: State, m: int) -> State:
    """The state from `from_sample` for a decoder of the m points of each sample."""
    decoder = state.get("decoder", {})
    return from_sample(state, decoder[FIRST] * m) if FIRST in decoder else state


def _own_keys(state: State, n: int, train: bool) -> tuple[State, State]:
    """The state that n samples share, and what each has of its own: in training mode, its key [n, 2]."""
    first = state.get(FIRST, 0)
    state = {name: v for name, v in state.items() if name != FIRST}
    if not (train and KEY in state):
        return state, {}
    return state, for_part({KEY: state[KEY]}, first + torch.arange(n, device=state[KEY].device))


def _of(own: State, i: int) -> State:
    return {name: each[i] for name, each in own.items()}


class _Call(NamedTuple):
    """A network with its parameters, its state and its mode."""

    network: Apply
    params: Params
    state: State
    own: State
    """What each sample has of its own [n, ...]: in training mode, its key."""
    train: bool

    def __call__(self, *inputs: Tree, own: State | None = None) -> tuple[Any, State]:
        return self.network(self.params, {**self.state, **(own or {})}, *inputs, train=self.train)


Shared = tuple[Tree, ...]
"""Inputs [B, ...] that are the same for all samples."""
Way = Callable[[_Call, Tensor, Shared], tuple[Any, State]]
"""A way to apply a network to z [N, B, Z]: (call, z, shared) -> (output, new state)."""


def _vmapped(call: _Call, z: Tensor, shared: Shared) -> tuple[Any, State]:
    out, new = torch.vmap(lambda z_n, own: call(z_n, *shared, own=own))(z, call.own)
    return out, _averaged(new, call.state)


def _in_rows(call: _Call, z: Tensor, shared: Shared) -> tuple[Any, State]:
    n = len(z)
    out, new = call(rearrange(z, "n b z -> (n b) z"), *tree.map(lambda t: torch.cat([t] * n), shared))
    return tree.map(lambda t: rearrange(t, "(n b) ... -> n b ...", n=n), out), new


def _in_turn(call: _Call, z: Tensor, shared: Shared) -> tuple[Any, State]:
    out, new = _stacked([call(z_n, *shared, own=_of(call.own, i)) for i, z_n in enumerate(z)])
    return out, _averaged(new, call.state)


def _averaged(states: State, old: State) -> State:
    """The average of states that are stacked along the first axis; of integers, the first.

    A buffer that no sample has changed keeps its bits, which an average might round.
    """

    def average(v: Tensor, before: Tensor) -> Tensor:
        return torch.where((v != before).any(), v.mean(0), before) if v.is_floating_point() else v[0]

    return {name: average(v, old[name]) for name, v in states.items()}


def _stacked(trees: list[Tree]) -> Tree:
    return tree.map(lambda *leaves: torch.stack(leaves), *trees)


_NAMES: dict[Way, str] = {_in_rows: "in one call", _in_turn: "one after another"}
_MODES = {False: "evaluation", True: "training"}
_FAILURES = (RuntimeError, ValueError, IndexError, TypeError)  # torch raises these where it cannot batch a function


@torch.no_grad()
def _trial(call: _Call, z: Tensor, shared: Shared) -> tuple[Way | None, str]:
    """The way to apply a network, and why it is not `vmap`; no way if the network fails without `vmap` too."""
    n, b = 3, 2
    rows = rearrange(z, "n b z -> (n b) z")
    rows = rows[torch.arange(n * b, device=z.device) % len(rows)]
    shared = tree.map(lambda t: t[torch.arange(b, device=z.device) % len(t)], shared)
    repeated = tree.map(lambda t: torch.cat([t] * n), shared)
    call = call._replace(own=_own_keys(call.state, n, call.train)[1])
    given = call, rearrange(rows, "(n b) z -> n b z", n=n), shared
    try:
        call(rows, *repeated)
    except _FAILURES:
        return None, ""
    try:
        _vmapped(*given)
        return _vmapped, ""
    except _FAILURES as error:
        reason = checks.one_line(str(error).split(". ")[0], 120)
    try:
        as_in_turn = not call.own and _all_close(_in_rows(*given), _in_turn(*given))
        one_call = as_in_turn and _has_separate_rows(call, rows, repeated)
    except _FAILURES:
        one_call = False
    return _in_rows if one_call else _in_turn, reason


def _has_separate_rows(call: _Call, z: Tensor, shared: Shared) -> bool:
    """Whether no row of z [M, Z] changes the output's other rows or the new state.

    NaN in a row shows couplings whose factor happens to be zero; finite numbers show those by comparisons.
    """
    out, new = call(z, *shared)
    row = torch.arange(len(z), device=z.device)
    for i in range(len(z)):
        for value in (torch.nan, 1e3, -1e3):
            other_out, other_new = call(torch.where((row == i).unsqueeze(1), value, z), *shared)
            pairs = [(a[row != i], b[row != i]) for a, b in tree.rows(out, other_out)] + tree.rows(new, other_new)
            if not all(torch.equal(a, b) for a, b in pairs):
                return False
    return True


def _all_close(first: Tree, second: Tree) -> bool:
    """Whether the leaves of two trees are equal to rounding, relative to the largest element of each."""
    return all(
        a.shape == b.shape
        and torch.allclose(a.double(), b.double(), rtol=0, atol=_ROUNDING * float(b.double().abs().max()))
        for a, b in tree.rows(first, second)
        if a.numel() or b.numel()
    )


_ROUNDING = 1e-4


def vmap_or_loop(f: Callable[..., Tree], what: str) -> Callable[..., Tree]:
    """Maps f over the first axis of its last argument, a tree: by `vmap`, or in a loop from the first call where that
    fails.

    Args:
        what: names, in the warning, what is computed one after another.

    Warns:
        Unbatched: `vmap` cannot batch f.
    """
    loops = False

    def mapped(*args: Any) -> Tree:
        nonlocal loops
        *fixed, batch = args
        vmapped = torch.vmap(lambda each: f(*fixed, each))
        if torch.compiler.is_compiling():
            return vmapped(batch)
        reason: Exception | None = None
        if not loops:
            try:
                return vmapped(batch)
            except torch.OutOfMemoryError:
                raise
            except _FAILURES as error:
                reason = error
        n = len(tree.leaves(batch)[0])
        each = [tree.map(lambda t, i=i: t[i], batch) for i in range(n)]
        found = _stacked([f(*fixed, own) for own in each])  # if this fails too, its error is more helpful
        if reason:
            loops = True
            warnings.warn(f"vmap cannot batch {what}", Unbatched, stacklevel=2)
        return found

    return mapped
