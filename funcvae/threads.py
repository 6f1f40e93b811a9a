"""The number of torch's threads, and how long they spin while they wait for each other.

The threads of OpenMP spin at the end of every operation, by default for milliseconds. That is fastest on cores of their
own. On shared cores, a thread may spin for as long as another program uses the core of the other thread, and a small
step takes a hundred times as long. So the command line limits the spinning before it imports torch, and a run
(`funcvae.runs`) makes small steps on one thread, which has nobody to wait for.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from funcvae.tree import Tree

__all__ = ["SPIN_COUNT", "advice", "limit_spinning", "of_step"]

SPIN_COUNT = 1000
"""How often a thread looks whether the others have finished, before it sleeps. OpenMP's own number is 300,000."""
_SPINNING, _THREADS = "GOMP_SPINCOUNT", "OMP_NUM_THREADS"


def limit_spinning() -> bool:
    """Limits the spinning of torch's threads in this process, and in those that it starts.

    It has no effect after torch was imported, which reads the variable: then it returns False. A GOMP_SPINCOUNT or
    OMP_WAIT_POLICY in the environment has priority.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault(_SPINNING, str(SPIN_COUNT))
    return "torch" not in sys.modules


def advice() -> str:
    """What to set before Python starts if programs share cores, what is set now, and why."""
    import torch

    now = ", ".join(f"{name} is {os.environ.get(name, 'not set')}" for name in (_THREADS, _SPINNING))
    return (
        f"torch uses {torch.get_num_threads()} threads; {now}.\n"
        "Threads spin while they wait for each other, which stops other programs on the same cores, and is stopped by "
        "them.\n"
        f"Steps of a few milliseconds: export {_THREADS}=1 costs up to 20%, and several programs run side by side.\n"
        f"Longer steps: export {_SPINNING}={SPIN_COUNT}, or call threads.limit_spinning() before the first import of "
        "torch.\n"
        "Several programs: give each its share of the cores as OMP_NUM_THREADS."
    )


@contextmanager
def of_step(params: "Tree", rows: int) -> Iterator[None]:
    """Uses one thread in a context if that makes a step almost as fast, unless OMP_NUM_THREADS is set.

    So it is if the products of a step need less than 2·10⁸ operations, a millisecond of one core. Those of a layer need
    6 for each weight and row: 2 forward and 4 backward. Convolutions use each weight more often, and count as large.

    Args:
        rows: the number of decoded data in a step, samples · batch.
    """
    import torch

    from funcvae import tree

    leaves, before = tree.leaves(params), torch.get_num_threads()
    operations = 6 * rows * sum(leaf.numel() for leaf in leaves)
    if _THREADS not in os.environ and operations < 2e8 and all(leaf.ndim <= 2 for leaf in leaves):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
