"""Worker of `step.py`: one side of a training step in PyTorch.

python tests/benchmarks/torch_side.py module|eager|compiled|product SYSTEM N PRECISION DEVICE [ESTIMATOR]

"module" is what a PyTorch user would write: `nn.Module`s, `torch.randn`, `backward()`, `torch.optim.Adam(fused=True)`,
eager. "eager" and "compiled" are the whole step of `train.fit`: the rows of the batch, noise (and binarization) from a
key, gradient, Adam in place, the norm of the gradient. "product" is one matrix product 2048×2048×2048.
"""

import argparse
import time
from collections.abc import Callable

import torch
from systems import SYSTEMS
from torch.utils.flop_counter import FlopCounterMode
from workers import serve

import funcvae as fv
from funcvae.estimators import parse
from funcvae.train.settings import StepSettings
from funcvae.train.step import run_step
from funcvae.train.streaming import training_batches
from funcvae.train.task import Task, checked_task

PRODUCT = 2048


def product_error(n: int, device: str) -> float:
    """Relative error of a product with the size of the decoder's largest, against float64, in Frobenius norms."""
    a_key, b_key = fv.random.split(fv.random.key(0))
    a, b = fv.random.normal(a_key, (n, 400)), fv.random.normal(b_key, (400, 784))
    exact = a.double() @ b.double()
    return float((a.to(device) @ b.to(device) - exact.to(device)).norm() / exact.norm())


def product(device: str) -> Callable[[], object]:
    a, out = torch.randn(PRODUCT, PRODUCT, device=device), torch.empty(PRODUCT, PRODUCT, device=device)
    return lambda: torch.mm(a, a, out=out)


def functional_step(
    system: str, samples: int, estimator: str, compiled: bool, device: str, batches: int = 50
) -> Callable[[], object]:
    """A step of `train.fit` on a data set of this many batches."""
    about = SYSTEMS[system]
    model, opt = about.model(), fv.optim.adam(1e-3, eps=about.eps)
    ts = fv.train.init(model, opt, fv.random.key(0, device=device))
    settings = StepSettings(about.batch, samples, observe=about.observe, compile=compiled)
    train = about.data().to(device).repeat(batches, *[1] * len(about.shape))
    task = checked_task(ts, Task(model, parse(estimator), opt, train, settings))
    run = run_step(task, lambda: False)
    inputs = run.inputs(training_batches(ts, task.train, about.batch), ts.params)
    fv.compilation.keep_freed()  # as `fit` does

    def step() -> None:
        nonlocal ts
        with torch.no_grad():
            ts, _ = run.step(ts, *next(inputs))

    return step


def main(side: str, system: str, samples: int, precision: str, device: str, estimator: str | None) -> None:
    about = SYSTEMS[system]
    torch.set_float32_matmul_precision(precision)
    facts = {"version": f"torch {torch.__version__}", "threads": torch.get_num_threads()}
    start = time.perf_counter()
    if side == "product":
        call = product(device)
        facts |= {"flops": 2 * PRODUCT**3, "error": product_error(samples * about.batch, device)}
    elif side == "module":
        call = about.module_step(about.data().to(device), samples)
        with FlopCounterMode(display=False) as counter:
            call()
        facts["flops"] = counter.get_total_flops()
    else:
        call = functional_step(system, samples, estimator or about.estimator, side == "compiled", device)
    call()
    facts["seconds_to_first"] = time.perf_counter() - start
    serve(facts, call, torch.cuda.synchronize if device == "cuda" else lambda: None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=["module", "eager", "compiled", "product"])
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("samples", type=int)
    parser.add_argument("precision", choices=fv.compilation.PRECISIONS)
    parser.add_argument("device")
    parser.add_argument("estimator", nargs="?")
    main(**vars(parser.parse_args()))
