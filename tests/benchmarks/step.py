"""A training step against JAX, against a plain PyTorch loop, and against the floor of its matrix products.

python tests/benchmarks/step.py --jax /path/to/python [--systems bernoulli burda cifar] [--device cuda]

Each side runs in a separate process, and the sides take turns; times are medians. `--jax` names a Python with `jax` and
`optax`; without it there is no JAX side. The floor is the number of floating-point operations of the step, which torch
counts in the plain loop, divided by the rate of a product 2048×2048×2048 in the same run. The error of a precision's
products against float64 should be at most twice JAX's. Values above their limits are marked.
"""

import argparse
import os
import sys
from contextlib import ExitStack
from pathlib import Path

from timing import marked
from workers import Side, alternating, start

HERE = Path(__file__).parent
# {(system, N): limits of compiled/JAX, compiled/module, compiled/floor, eager/module}; at "highest" 1.2 for JAX.
LIMITS = {
    ("bernoulli", 1): (1.0, 0.75, None, 1.2),
    ("bernoulli", 16): (0.65, 0.5, 1.5, 1.0),
    ("bernoulli", 64): (0.65, 0.5, 1.4, 1.0),
    ("burda", 1): (1.0, None, None, 1.5),
    ("burda", 5): (1.0, None, None, None),
    ("burda", 50): (1.0, None, None, None),
    ("cifar", 1): (None, 1.0, None, None),
}
CALLS = {"bernoulli": {1: 40, 16: 8, 64: 4}, "burda": {1: 40, 5: 40, 50: 10}, "cifar": {1: 2}}  # per turn


def sides(stack: ExitStack, system: str, samples: int, precision: str, device: str, jax: str | None) -> dict[str, Side]:
    names = ["module", "eager", "compiled", "product"]
    commands = {
        name: [sys.executable, str(HERE / "torch_side.py"), name, system, str(samples), precision, device]
        for name in names
    }
    if jax and system != "cifar":
        commands["jax"] = [jax, str(HERE / "jax_side.py"), system, str(samples)]
    return {name: start(stack, command) for name, command in commands.items()}


def compare(system: str, samples: int, precision: str, device: str, jax: str | None, rounds: int) -> None:
    with ExitStack() as stack:
        running = sides(stack, system, samples, precision, device, jax)
        ms = alternating(running, rounds=rounds, calls=CALLS[system][samples])
        facts = {name: side.facts for name, side in running.items()}
    floor = facts["module"]["flops"] / facts["product"]["flops"] * ms["product"]
    of_jax, of_module, of_floor, eager_of_module = LIMITS[system, samples]
    if precision == "highest":
        of_jax, of_floor = of_jax and 1.2, None
    compiled, module = ms["compiled"], ms["module"]
    cells = [f"{system:9} N = {samples:2}  {precision:8}"]
    cells += [f"compiled {compiled:.2f}  eager {ms['eager']:.2f}  module {module:.2f}  floor {floor:.2f} ms"]
    ratios = {
        "compiled/module": marked(compiled / module, of_module),
        "eager/module": marked(ms["eager"] / module, eager_of_module),
    }
    ratios["compiled/floor"] = marked(compiled / floor, of_floor)
    if "jax" in ms:
        errors = facts["product"]["error"], facts["jax"]["error"]
        cells[1] += f"  JAX {ms['jax']:.2f}"
        ratios = {"compiled/JAX": marked(compiled / ms["jax"], of_jax), **ratios}
        ratios["products' error"] = f"{errors[0]:.1e}/{errors[1]:.1e} = {marked(errors[0] / errors[1], 2.0)}"
    print("  ".join(cells), "|", ", ".join(f"{name} {value}" for name, value in ratios.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jax", help="a Python with jax and optax")
    parser.add_argument("--systems", nargs="+", default=list(CALLS), choices=CALLS)
    parser.add_argument("--samples", type=int, nargs="+", help="only these")
    parser.add_argument("--precisions", nargs="+", default=["medium", "highest"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    print(f"{os.cpu_count()} processors, {os.uname().machine}; median milliseconds of a step")
    for system in args.systems:
        for samples in CALLS[system]:
            if args.samples is None or samples in args.samples:
                for precision in args.precisions:
                    compare(system, samples, precision, args.device, args.jax, args.rounds)


if __name__ == "__main__":
    main()
