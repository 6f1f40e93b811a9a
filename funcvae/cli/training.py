"""Commands that train, and that make a run's steps again."""

import logging
import signal
import sys
from typing import Annotated, Any, Literal

import tyro

from funcvae import compilation, distributed, runs, tracking
from funcvae.cli.options import Device, fresh
from funcvae.cli.signals import stopping
from funcvae.errors import BadValue, Stopped


def train(
    system: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="SYSTEM")]] = None,
    /,
    *,
    data: str | None = None,
    data_dir: str | None = None,
    download: bool = False,
    epochs: int | None = None,
    batch: int | None = None,
    samples: int | None = None,
    chunk: int | None = None,
    shards: int | None = None,
    split: Annotated[str | None, tyro.conf.arg(metavar=f"{{{','.join(runs.SPLITS)}}}")] = None,
    estimator: str | None = None,
    noise: str | None = None,
    lr: float | None = None,
    seed: int | None = None,
    out: str | None = None,
    resume: str | None = None,
    checkpoint_every: int | None = None,
    keep: int | None = None,
    device: Device | None = None,
    precision: Annotated[str | None, tyro.conf.arg(metavar=f"{{{','.join(compilation.PRECISIONS)}}}")] = None,
    no_compile: bool = False,
    deterministic: bool = False,
    track: tyro.conf.UseAppendAction[tuple[Literal["tensorboard", "visdom"], ...]] = (),
    visdom_server: str = "http://localhost:8097",
    sample_each_step: bool = False,
    variance_every: int | None = None,
    variance_of: str | None = None,
    variance_replicates: int | None = None,
    patience: float = distributed.PATIENCE,
) -> None:
    """Train a named system, by its own recipe unless told otherwise, into a run folder; or go on with a run.

    Ctrl-C and SIGTERM stop it after the step, with a checkpoint; once more, at once. Started by torchrun, several
    processes train one model.

    Args:
        system: One of `funcvae list systems`; gaussian2d_vae unless given.
        data: A name in `funcvae list data`, a folder of images, FILE.npy or FILE.npz; the recipe's unless given.
        data_dir: Where named data sets are kept; data/ unless given.
        download: Download a named data set that is not there.
        epochs: Passes over the training data; the recipe's number unless given.
        batch: Batch size; the recipe's unless given.
        samples: Monte-Carlo samples N for each datum, the K of L_K; the recipe's unless given.
        chunk: Samples decoded at a time, where there are more: it bounds the memory. Chosen by the batch's size unless
            given, or at 0.
        shards: Cut each step's work into so many and add up in a fixed order: the same bits on any number of processes,
            up to so many. Unless given, or at 0, each process has one, and they add up as is fastest.
        split: What is cut: the batch's rows, or each datum's samples; rows unless given.
        estimator: NAME or NAME:ARGUMENT, one of `funcvae list estimators`; the recipe's unless given.
        noise: Noise scheme, one of `funcvae list noise`; iid unless given.
        lr: Learning rate; the recipe's rate or schedule unless given.
        seed: The key's seed, 0 unless given: the same seed gives the same bits.
        out: Run folder, new or empty; a fresh one under runs/ unless given.
        resume: Go on with the run in this folder from its newest checkpoint, to the bits of a run that was not stopped.
            Only --epochs, and how it is kept and shown, may be another than it began with. "auto": with the run in
            --out if there is one, else from the beginning, as a command that may be started again wants it.
        checkpoint_every: Steps between two checkpoints, 1000 unless given; 0 for none but the last one.
        keep: How many checkpoints stay, the newest; 2 unless given.
        device: Where to train; on CUDA where there is any, unless given.
        precision: Precision of float32 matrix products, highest unless given (torch.set_float32_matmul_precision):
            "medium" is faster on many machines, and bfloat16 where the CPU has AMX.
        no_compile: Train without torch.compile, as systems that gain nothing by it always do: the first step comes
            seconds earlier.
        deterministic: Use no algorithm whose bits may change from run to run (torch.use_deterministic_algorithms).
        track: Also show the run, as it goes, in TensorBoard (in the run folder) or on a Visdom server; may be repeated.
        visdom_server: Where the Visdom server listens.
        sample_each_step: Keep samples of the model after every step, and draw how they evolve (data in the plane only).
        variance_every: Log the variance of the estimator's gradient on one batch, after every so many steps.
        variance_of: Log that of these estimators too, on the same noise: names with commas between them.
        variance_replicates: Draws of the noise for that; 100 unless given.
        patience: Seconds that the processes that torchrun started wait for one another at the beginning.
    """
    given = {
        "data": data, "data_dir": data_dir, "epochs": epochs, "batch": batch, "samples": samples, "chunk": chunk,
        "shards": shards, "split": split, "estimator": estimator, "noise": noise, "lr": lr, "seed": seed,
        "checkpoint_every": checkpoint_every, "keep": keep, "precision": precision,
        "deterministic": deterministic or None, "sample_each_step": sample_each_step or None,
        "variance_every": variance_every, "variance_of": variance_of, "variance_replicates": variance_replicates,
    }  # fmt: skip
    makers: dict[str, runs.MakeTracker] = {
        "tensorboard": tracking.tensorboard,
        "visdom": lambda run, config, past: tracking.visdom(visdom_server, run.name, config, past),
    }
    trackers = [makers[name] for name in dict.fromkeys(track)]
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it reports a missing CUDA as a warning
    caught: list[int] = []
    try:
        with distributed.process_group(device or "auto", patience=patience) as everyone:
            how: dict[str, Any] = {"trackers": trackers, "processes": everyone}
            how["stopping"] = lambda: stopping(caught, alone=everyone.size == 1)
            if resume == "auto":
                if out is None:
                    raise BadValue("--resume auto goes on in --out, or begins there: give --out RUN")
                resume = everyone.all_gather_object(out if runs.has_run(out) else None)[0]
            elif resume is not None and (out is not None or download):
                raise BadValue("--resume RUN goes on in RUN, with data that are there: leave out --out and --download")
            if resume is not None:
                given |= {"system": system, "compile": False if no_compile else None}
                given |= {"device": None if device is None else runs.resolve_device(device)}
                path = runs.resume(resume, given, **how)
            else:
                system = system or "gaussian2d_vae"
                wanted = runs.recipe(system).compile and not no_compile
                if wanted and not compilation.available():
                    print(f"funcvae: {compilation.NO_COMPILER}; training without torch.compile", file=sys.stderr)
                    wanted = False
                place = {
                    "device": runs.resolve_device(device or "auto"),
                    "out": everyone.all_gather_object(out or fresh(system))[0],
                }
                config = runs.configure(system, **given, **place, compile=wanted)
                path = runs.run(config, download=download, **how)
    except Stopped as error:
        print(f"funcvae: {error}", file=sys.stderr)
        sys.exit(128 + (caught[0] if caught else signal.SIGTERM))
    print(path)
