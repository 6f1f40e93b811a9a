"""The number of torch's threads, and how long they spin while they wait for each other.

At the end of every operation, the threads of OpenMP spin until all have finished, by default for milliseconds. That is
fastest if no other program uses the cores. On shared cores, one thread may spin for as long as another program uses the
core of the other thread, and a small step takes a hundred times as long. So the command line limits the spinning before
it imports torch, and a run (`funcvae.runs`) makes small steps on one thread, which waits for no other.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from funcvae.tree import Tree

__all__ = ["SPIN_COUNT", "advice", "limit_spinning", "of_step", "using"]

SPIN_COUNT = 1000
"""The number of times that a thread checks for the others before it sleeps. The default of GNU OpenMP is 300,000."""
_SPINNING, _WAITING, _THREADS = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS"


def limit_spinning() -> bool:
    """Sets GOMP_SPINCOUNT to `SPIN_COUNT`, for this process and those that it starts.

    GOMP_SPINCOUNT and OMP_WAIT_POLICY keep their values if they are set. GNU OpenMP, which torch uses on Linux, reads
    the variable when torch is imported.

    Returns:
        Whether the call came before the import of torch. After it, only the processes started later are affected.
    """
    if _WAITING not in os.environ:
        os.environ.setdefault(_SPINNING, str(SPIN_COUNT))
    return "torch" not in sys.modules


def advice() -> str:
    """What to set before Python starts if programs share cores, what is set now, and why."""
    import torch

    count = torch.get_num_threads()
    now = ", ".join(f"{name} is {os.environ.get(name) or 'not set'}" for name in (_THREADS, _SPINNING, _WAITING))
    state = f"torch uses {count} thread{'s' * (count != 1)}; {now}."
    if count == 1:
        return f"{state}\nA single thread waits for no other: there is nothing to set."
    return (
        f"{state} What was set after torch was imported holds for\nprocesses started later.\n"
        "Threads spin while they wait for each other. On cores that programs share, this slows all of them.\n"
        f"Steps of a few milliseconds: export {_THREADS}=1 before Python starts. Alone they take up to 20% longer.\n"
        f"Longer steps: export {_SPINNING}={SPIN_COUNT}, or begin your program with threads.limit_spinning().\n"
        f"Several programs: give each its share of the cores as {_THREADS}."
    )


@contextmanager
def using(count: int) -> Iterator[None]:
    """Sets the number of torch's threads in a context, and restores it at the end.

    Raises:
        BadType, BadValue: count is not a whole number, 1 or more.
    """
    import torch

    from funcvae._support import checks

    checks.at_least(1)("count", checks.integer("count", count))
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def of_step(params: "Tree", rows: int) -> int:
    """The number of threads for the steps of a run: one if that takes at most 20% longer, otherwise all.

    One thread is enough if the products of a step need less than 2·10⁸ operations, a millisecond of one core. Those of
    a layer need 6 for each weight and row: 2 forward and 4 backward. Convolutions use each weight more often, and count
    as large. A number in OMP_NUM_THREADS has priority.

    Args:
        rows: the number of decoded data in a step, samples · batch.
    """
    import torch

    from funcvae import tree

    leaves = tree.leaves(params)
    operations = 6 * rows * sum(leaf.numel() for leaf in leaves)
    is_small = operations < 2e8 and all(leaf.ndim <= 2 and not leaf.is_cuda for leaf in leaves)
    is_chosen = re.match(r"\s*[1-9]", os.environ.get(_THREADS, ""))  # OpenMP ignores anything else
    return 1 if is_small and not is_chosen else torch.get_num_threads()
