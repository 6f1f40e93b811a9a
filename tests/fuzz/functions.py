"""Calls every public function with wrong arguments.

python tests/fuzz/functions.py [--cases 60000] [--seed 0] [--only variance] [--case 17]

The public functions are those in the `__all__` of funcvae and of its NAMESPACES, and methods that `targets.py` adds. A
function may be left out only with a reason (`targets.LEFT_OUT`).

A case calls one function, usually with one or two wrong arguments. The call must succeed or raise a `FuncvaeError` with
a message of one line. It must not warn, take more than thirty seconds or 1 GiB, or change its arguments. Case i of a
seed is always the same.

Prints the outcomes for every function. The exit status is 1 if a case fails, if none of a hundred or more cases of a
function succeeds, or if a public function is neither called nor left out.
"""

import argparse
import inspect
import random
import sys
import tempfile
import traceback
import warnings
from collections import Counter, defaultdict
from contextlib import chdir
from operator import attrgetter
from typing import Any, NamedTuple

import limits
import numpy as np
import targets_lab  # noqa: F401 - these two add targets when they are imported
import targets_runs  # noqa: F401
import torch
from arguments import junk, shown, world
from targets import LEFT_OUT, TARGETS, Target, Theirs
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

import funcvae as fv
from funcvae import errors, evaluate

PATIENCE = 30  # seconds per case


class Outcome(NamedTuple):
    """The outcome of a case."""

    end: str
    """"success", the class of the error, or "!" and what is wrong."""
    error: BaseException | None = None
    took: float = 0.0
    """Memory in MiB."""

    @property
    def failed(self) -> bool:
        return self.end.startswith("!")


def drawn(targets: list[Target], seed: int, case: int) -> tuple[Target, dict[str, Any]]:
    """The function of a case and its arguments."""
    rng = random.Random(f"{seed}/{case}")
    (target,) = rng.choices(targets, [t.weight for t in targets])
    w = world(rng.choice(target.worlds))
    wrong = set(rng.sample(list(target.kinds), min(len(target.kinds), rng.choices((0, 1, 2), (1, 6, 2))[0])))
    arguments = {}
    for name, kind in target.kinds.items():
        if name not in wrong or (kind.bad is None and not kind.junk):
            arguments[name] = kind.good(rng, w)
        elif kind.bad is None or (kind.junk and rng.random() < 0.4):
            arguments[name] = junk(rng, w)
        else:
            arguments[name] = kind.bad(rng, w)
    return target, arguments


def called(target: Target, arguments: dict[str, Any]) -> Outcome:
    """Calls the function and returns the outcome."""
    took, before = limits.taking(), bits(arguments)
    try:
        with warnings.catch_warnings(), limits.in_time(PATIENCE):
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", evaluate.Untrusted)  # this one and the next are expected
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            target.call(**arguments)
        outcome = Outcome("success")
    except errors.FuncvaeError as error:
        outcome = Outcome(type(error).__name__, error)
        if not str(error).strip() or "\n" in str(error) or len(str(error)) > 2000:
            outcome = Outcome(f"! {type(error).__name__} is not one line: {str(error)!r:.300}", error)
    except Theirs:
        outcome = Outcome("error of the network")
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        outcome = Outcome(f"! {type(error).__name__}: {' '.join(str(error).split()):.300}", error)
    if not all(map(torch.equal, before, bits(arguments))):
        outcome = Outcome("! changed an argument")
    if took() > limits.MEMORY:
        outcome = outcome._replace(end=f"! took {took():.0f} MiB")
    return outcome._replace(took=took())


def bits(arguments: dict[str, Any]) -> list[torch.Tensor]:
    """Copies of the bytes of all tensors and arrays in the arguments."""
    leaves = [torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fiu" else leaf
              for leaf in tree_leaves(arguments)]  # fmt: skip
    tensors = [t for t in leaves if isinstance(t, torch.Tensor) and t.layout == torch.strided and not t.is_meta]
    copies = [torch.empty(t.shape, dtype=t.dtype).copy_(t.detach()) for t in tensors]  # strides may be arbitrary
    return [t.reshape(-1).view(torch.uint8) for t in copies]


NAMESPACES = (
    "random", "noise", "bounds", "distributions", "heads", "priors", "optim", "tree", "estimators", "evaluate", "train",
    "data", "figures", "figures.decoding", "figures.of_model", "figures.of_results", "models", "variance", "runs", "",
    "batching", "model", "modules", "distributed",
)  # fmt: skip
"""The namespaces with functions; "" is `funcvae` itself. `compilation` and `tracking` are left out, because they work
with the compiler, files and servers, and `errors`, because its function checks nothing."""


def public() -> set[str]:
    """The names of all public functions, with the first namespace that lists them."""
    found: dict[Any, str] = {}
    for name in NAMESPACES:
        namespace = attrgetter(name)(fv) if name else fv
        for each in namespace.__all__:
            value = getattr(namespace, each)
            if inspect.isfunction(value):
                found.setdefault(value, f"{name}.{each}".lstrip("."))
    return set(found.values())


def uncovered() -> set[str]:
    """Public functions that are neither called nor left out."""
    return public() - TARGETS.keys() - LEFT_OUT.keys()


def main(argv: list[str] | None = None, targets: dict[str, Target] = TARGETS) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run only this case and print its error")
    parser.add_argument("--only", default="", help="only functions whose name contains this")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    chosen = [target for target in targets.values() if args.only in target.name]
    if args.case is not None:
        target, arguments = drawn(chosen, args.seed, args.case)
        print(target.name, *(f"\n    {name} = {shown(value)}" for name, value in arguments.items()), sep="")
        outcome = called(target, arguments)
        traceback.print_exception(outcome.error)
        print(outcome.end)
        return int(outcome.failed)
    ends: dict[str, Counter[str]] = defaultdict(Counter)
    failed: dict[str, list[str]] = defaultdict(list)
    most = 0.0
    for case in tqdm(range(args.cases), unit="case", disable=args.cases < 1000):
        target, arguments = drawn(chosen, args.seed, case)
        with tempfile.TemporaryDirectory() as folder, chdir(folder):  # the function may write a file named "x"
            outcome = called(target, arguments)
        most = max(most, outcome.took)
        ends[target.name]["failure" if outcome.failed else outcome.end] += 1
        if outcome.failed:
            only = f" --only {args.only}" if args.only else ""
            failed[target.name].append(f"--seed {args.seed} --case {case}{only} ({target.name}): {outcome.end[2:]}")
    for name, counts in sorted(ends.items()):
        print(f"{name:36}{counts.total():8,}  " + ", ".join(f"{end} {n:,}" for end, n in sorted(counts.items())))
    total = sum(ends.values(), Counter())
    print("total" + ", ".join(f" {end} {n:,}" for end, n in sorted(total.items())))
    count = sum(map(len, failed.values()))
    print(f"{args.cases:,} cases of {len(ends)} functions, {count} failures; none took more than {most:.0f} MiB")
    print(*(line for lines in failed.values() for line in lines[:3]), sep="\n", end="\n", file=sys.stderr)
    expected = {"distributions.Delta.log_prob", "runs.load"}  # a point has no density; files.py tests run folders
    never = {name for name, counts in ends.items() if counts.total() >= 100 and not counts["success"]} - expected
    if never:
        print("never succeeded:", *sorted(never), file=sys.stderr)
    if missing := uncovered():
        print("not called:", *sorted(missing), file=sys.stderr)
    return int(bool(failed or never or missing))


if __name__ == "__main__":
    sys.exit(main())
