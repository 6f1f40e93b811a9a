"""The cost of tracking: python tests/benchmarks/tracking.py --data-dir data --visdom http://localhost:8097

First, each tracker alone: the time of its calls for an epoch's rows of mnist_vae, spread over two seconds. The rows
come in bursts of 50 steps, followed by 32 digits and their reconstructions for trackers that show images. Then, all
trackers in training: epochs of one run with and without trackers alternate. The first two epochs, which compile, are
excluded from the medians. Last, the figures, which a run draws once. Without --visdom, that tracker is skipped.
"""

import argparse
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from torch import Tensor

import funcvae as fv
from funcvae.tracking import MetricsWriter, Tracker
from funcvae.train import Row

STEPS, BURST, SECONDS = 469, 50, 2.0


def start(stack: ExitStack, server: str | None) -> dict[str, Tracker | MetricsWriter]:
    """The trackers by name, which write to a temporary folder."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    config = {"system": "mnist_vae", "seed": 0}
    entered: dict[str, Tracker | MetricsWriter] = {
        "jsonl": stack.enter_context(fv.tracking.MetricsWriter(folder / "metrics.jsonl")),
        "tensorboard": stack.enter_context(fv.tracking.tensorboard(folder, config)),
    }
    if server is not None:
        entered["visdom"] = stack.enter_context(fv.tracking.visdom(server, "benchmark", config))
    return entered


def an_epoch(tracker: Tracker | MetricsWriter, epoch: int, x: Tensor) -> float:
    """Seconds of a tracker's calls for an epoch's rows."""
    steps = range(epoch * STEPS, (epoch + 1) * STEPS)
    numbers = {"loss": 160.123, "bound": -160.123, "grad_norm": 9.87}
    rows: list[Row] = [{"kind": "step", "epoch": epoch, "step": step, **numbers} for step in steps]
    rows.append({"kind": "epoch", "epoch": epoch, "step": steps.stop, "train_bound": -160.123, "test_bound": -161.234})
    spent = 0.0
    for i in range(0, STEPS + 1, BURST):
        burst = rows[i : i + BURST]
        time.sleep(SECONDS * len(burst) / STEPS)
        began = time.perf_counter()
        for row in burst:
            tracker.log(row)
        spent += time.perf_counter() - began
    began = time.perf_counter()
    if not isinstance(tracker, MetricsWriter):
        tracker.show(steps.stop, {"x": x.numpy(), "x_hat": x.numpy()})
    return spent + time.perf_counter() - began


def alone(server: str | None, epochs: int, x: Tensor) -> None:
    with ExitStack() as stack:
        for name, tracker in start(stack, server).items():
            costs = [1e3 * an_epoch(tracker, epoch, x) for epoch in range(epochs)]
            print(f"{name:12} {median(costs):5.1f} ms an epoch, at most {max(costs):.1f}", flush=True)


def in_training(server: str | None, epochs: int, digits: fv.data.Dataset, compile: bool) -> None:
    system = fv.models.SYSTEMS["mnist_vae"]
    recipe = system.recipe
    model, opt = system.build(digits.train), recipe.optimizer(STEPS)
    seconds: list[float] = []
    calls = [0.0]  # seconds of the trackers' calls in each tracked epoch
    began = time.perf_counter()

    def watch(step: int, ts: fv.train.TrainState) -> None:
        epoch = step // STEPS - 1
        if step % STEPS == 0 and epoch % 2:  # a run shows reconstructions after every epoch
            called, x = time.perf_counter(), digits.decode(digits.train[:32])
            x_hat = fv.figures.decoding.reconstructed(model, ts.params, ts.state, x, fv.random.fold_in(ts.key, step))
            for tracker in trackers.values():
                if not isinstance(tracker, MetricsWriter):
                    tracker.show(step, {"x": x.numpy(), "x_hat": x_hat.numpy()})
            calls[-1] += time.perf_counter() - called

    def log(row: Row) -> None:
        nonlocal began
        a_step, tracked = row["kind"] == "step", row["epoch"] % 2
        if tracked:
            called = time.perf_counter()
            for tracker in trackers.values():
                tracker.log(row)
            calls[-1] += time.perf_counter() - called
        if not a_step:
            seconds.append(time.perf_counter() - began)
            if tracked:
                print(f"epoch {row['epoch']}: {seconds[-2]:.3f} s plain, {seconds[-1]:.3f} s tracked", flush=True)
                calls.append(0.0)
            began = time.perf_counter()

    with ExitStack() as stack:
        trackers = start(stack, server)
        ts = fv.train.init(model, opt, fv.random.key(0))
        ts, history = fv.train.fit(
            ts, model, fv.estimators.elbo(), opt, digits.train,
            epochs=epochs, observe=recipe.observe, compile=compile, log=log, watch=watch,
        )  # fmt: skip
    ratio = median(tracked / plain for plain, tracked in zip(seconds[2::2], seconds[3::2], strict=True))
    own = median(spent / tracked for spent, tracked in zip(calls[1:-1], seconds[3::2], strict=True))
    print(f"a tracked epoch takes {ratio:.3f} times the epoch before; calls of trackers are {own:.1%} of it")

    began, key = time.perf_counter(), fv.random.key(1)
    drawn = fv.figures.of_results.of_run(
        model, ts.params, ts.state, system, digits, digits.test[: fv.figures.of_results.POINTS], key
    )
    drawn["training"] = fv.figures.of_results.training(history, name="ELBO", title="Training")
    with tempfile.TemporaryDirectory() as folder:
        for name, figure in drawn.items():
            fv.figures.save(figure, Path(folder, f"{name}.png"))
    drawing, epoch = time.perf_counter() - began, median(seconds[2::2])
    whole = recipe.epochs * epoch
    print(f"a run's figures take {drawing:.2f} s once, {drawing / whole:.1%} of the recipe's {recipe.epochs} epochs")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--visdom", help="address of a Visdom server")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--eager", action="store_true")
    args = parser.parse_args()
    digits = fv.data.load("mnist", root=args.data_dir)
    alone(args.visdom, args.epochs, digits.decode(digits.train[:32]))
    in_training(args.visdom, args.epochs, digits, not args.eager)
