"""The command line: train a system, then look at what it learned.

A user's mistake is one line on stderr and exit status 2.
"""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from matplotlib.figure import Figure
from tqdm import tqdm

from funcvae import __version__, data, estimators, files, noise, pictures, plots, random, reports, runs, tracking
from funcvae.errors import BadValue, FuncvaeError, unknown
from funcvae.models import RECIPES
from funcvae.probes import Probe

RunPath = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN")]]
Device = Literal["auto", "cpu", "cuda"]


def train(
    system: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SYSTEM")]] = "gaussian2d_vae",
    /,
    *,
    data: str | None = None,
    data_dir: str = "data",
    download: bool = False,
    epochs: int | None = None,
    batch: int | None = None,
    samples: int | None = None,
    estimator: str | None = None,
    noise: str = "iid",
    lr: float | None = None,
    seed: int = 0,
    out: str | None = None,
    device: Device = "auto",
    precision: Literal["highest", "high", "medium"] = "highest",
    no_compile: bool = False,
    track: tyro.conf.UseAppendAction[tuple[Literal["tensorboard", "visdom"], ...]] = (),
    visdom_server: str = "http://localhost:8097",
    sample_each_step: bool = False,
    variance_every: int = 0,
    variance_of: str = "",
    variance_replicates: int = 100,
) -> None:
    """Train a named system, by its own recipe unless told otherwise, into a run folder.

    Args:
        system: One of `funcvae list systems`.
        data: A name in `funcvae list data`, a folder of images, FILE.npy or FILE.npz; the recipe's unless given.
        data_dir: Where named data sets are kept.
        download: Download a named data set that is not there.
        epochs: Passes over the training data; the recipe's number unless given.
        batch: Batch size; the recipe's unless given.
        samples: Monte-Carlo samples N for each datum, the K of L_K; the recipe's unless given.
        estimator: NAME or NAME:ARGUMENT, one of `funcvae list estimators`; the recipe's unless given.
        noise: Noise scheme, one of `funcvae list noise`.
        lr: Learning rate; the recipe's rate or schedule unless given.
        seed: The key's seed: the same seed gives the same bits.
        out: Run folder, new or empty; a fresh one under runs/ unless given.
        device: Where to train.
        precision: Precision of float32 matrix products (torch.set_float32_matmul_precision).
        no_compile: Train without torch.compile.
        track: Also show the run, as it goes, in TensorBoard (in the run folder) or on a Visdom server; may be repeated.
        visdom_server: Where the Visdom server listens.
        sample_each_step: Keep samples of the model after every step, and draw how they evolve (data in the plane only).
        variance_every: Log the variance of the estimator's gradient on one batch, after every so many steps.
        variance_of: Log that of these estimators too, on the same noise: names with commas between them.
        variance_replicates: Draws of the noise for that.
    """
    wanted = runs.recipe(system).compile and not no_compile
    if wanted and not runs.can_compile():
        print("funcvae: no C++ compiler found, training without torch.compile", file=sys.stderr)
        wanted = False
    config = runs.configure(
        system,
        data=data,
        data_dir=data_dir,
        epochs=epochs,
        batch=batch,
        samples=samples,
        estimator=estimator,
        noise=noise,
        lr=lr,
        seed=seed,
        device=runs.device(device),
        precision=precision,
        compile=wanted,
        out=out or _fresh(system),
    )
    trackers: dict[str, runs.MakeTracker] = {
        "tensorboard": tracking.tensorboard,
        "visdom": lambda run, config: tracking.visdom(visdom_server, run.name, config),
    }
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it reports a missing CUDA as a warning
    print(
        runs.run(
            config,
            download=download,
            trackers=[trackers[name] for name in dict.fromkeys(track)],
            sample_each_step=sample_each_step,
            probe=Probe(variance_every, tuple(_names(variance_of)), variance_replicates),
        )
    )


@dataclass(frozen=True)
class Look:
    """What every command that looks at a run takes."""

    out: str | None = None
    """PNG file; one named for the picture, under figures/ in the run's folder, unless given."""
    seed: int = 0
    """Seed of the key for draws from the model, and for data that are binarized anew each time."""
    data: str | None = None
    """The data's file or folder, if it has moved since training."""
    data_dir: str | None = None
    """Where named data sets are kept now; where they were in training unless given."""
    device: Device = "auto"
    """Where to compute."""

    def at(self, run: str) -> runs.Run:
        """The run to look at."""
        return runs.load(run, device=runs.device(self.device), data=self.data, data_dir=self.data_dir)

    def keys(self) -> tuple[random.Key, random.Key]:
        """Two keys of the given seed: one to observe data with, one to draw from the model with."""
        observe_key, draw_key = random.split(random.key(self.seed, device=runs.device(self.device)))
        return observe_key, draw_key

    def save(self, figure: Figure, run: runs.Run, name: str) -> Path:
        """Saves a figure of the run and prints where."""
        path = plots.save(figure, self.out or run.path / "figures" / f"{name}.png")
        print(path)
        return path


LookOptions = Annotated[Look, tyro.conf.arg(name="")]
LOOK = Look()


def sample(run: RunPath, /, *, n: int | None = None, drawn: bool = False, look: LookOptions = LOOK) -> None:
    """Draw samples of a trained model: z from the prior, and the mean of p(x|z).

    Args:
        run: The run's folder.
        n: How many; 100 images, or as many points as were trained on, unless given.
        drawn: Draw x from p(x|z), the decoder's noise included, rather than take its mean.
        look: What every such command takes.
    """
    at, (_, key) = look.at(run), look.keys()
    if at.recipe.shape == (2,):
        dataset = at.dataset()
        n = len(dataset.train) if n is None else n
        figure = pictures.point_samples(*at.trained, key, n, dataset, drawn=drawn, name=at.recipe.name)
    else:
        n = pictures.SAMPLES if n is None else n
        figure = pictures.image_samples(*at.trained, key, n, drawn=drawn, **at.titled)
    look.save(figure, at, "samples_drawn" if drawn else "samples")


def reconstruct(run: RunPath, /, *, n: int | None = None, look: LookOptions = LOOK) -> None:
    """Draw test images beside what a trained model makes of them.

    Args:
        run: The run's folder.
        n: How many, from the test set's beginning; 20 unless given.
        look: What every such command takes.
    """
    at = look.at(run)
    test = at.dataset().test
    n = min(pictures.PAIRS, len(test)) if n is None else n
    if not 1 <= n <= len(test):
        raise BadValue(f"--n is {n}: the test set has {len(test)} items, so it must lie between 1 and {len(test)}")
    observe_key, key = look.keys()
    x = at.recipe.observe(observe_key, test[:n].to(at.device))
    look.save(pictures.reconstructions(*at.trained, x, key, **at.titled), at, "reconstructions")


def interpolate(
    run: RunPath,
    first: tyro.conf.Positional[Annotated[int, tyro.conf.arg(metavar="FIRST")]],
    second: tyro.conf.Positional[Annotated[int, tyro.conf.arg(metavar="SECOND")]],
    /,
    *,
    steps: int = 12,
    frames: int = 50,
    look: LookOptions = LOOK,
) -> None:
    """Decode the line between two test items' latents: a strip, and beside it a GIF that goes there and back.

    Args:
        run: The run's folder.
        first: Index of the first item in the test set, from 0.
        second: Index of the second.
        steps: Images in the strip.
        frames: Frames of the GIF, one way.
        look: What every such command takes.
    """
    for option, value, most in (("--steps", steps, 50), ("--frames", frames, 1000)):
        if not 2 <= value <= most:
            raise BadValue(f"{option} is {value}: it must lie between 2, the two ends, and {most}")
    at = look.at(run)
    test = at.dataset().test
    for index in (first, second):
        if not 0 <= index < len(test):
            raise BadValue(f"there is no test item {index}: the test set has items 0 to {len(test) - 1}")
    observe_key, _ = look.keys()
    start, end = at.recipe.observe(observe_key, test[[first, second]].to(at.device))
    strip = pictures.interpolation(*at.trained, start, end, steps, **at.titled)
    images = at.recipe.pixels(pictures.interpolated(*at.trained, start, end, frames)).cpu()
    path = look.save(strip, at, f"interpolation_{first}_{second}")
    print(plots.save_gif(images, path.with_suffix(".gif")))


def latent(
    run: RunPath,
    what: tyro.conf.Positional[Literal["scatter", "grid"]] = "scatter",
    /,
    *,
    look: LookOptions = LOOK,
) -> None:
    """Draw the latent space: where test data are encoded, or images decoded on a grid over that part of it.

    Args:
        run: The run's folder.
        what: A scatter by class (in the first two principal components where Z > 2), or a grid (Z = 2 only).
        look: What every such command takes.
    """
    at = look.at(run)
    dataset = at.dataset()
    observe_key, _ = look.keys()
    x = at.recipe.observe(observe_key, dataset.test[: pictures.POINTS].to(at.device))
    if what == "grid":
        figure = pictures.latent_grid(*at.trained, x, **at.titled)
    else:
        labels = None if dataset.test_labels is None else dataset.test_labels[: len(x)]
        figure = pictures.latent_scatter(*at.trained, x, labels, name=at.recipe.name)
    look.save(figure, at, f"latent_{what}")


def evaluate(
    run: RunPath,
    /,
    *,
    samples: int = 5000,
    n: int | None = None,
    chunk: int = 100,
    seed: int = 0,
    data: str | None = None,
    data_dir: str | None = None,
    device: Device = "auto",
    out: str | None = None,
) -> None:
    """Evaluate a trained model on test data: log-likelihood with its errors, bounds, KLs, active units.

    Prints a table, and writes evaluation.json and figures.

    Args:
        run: The run's folder.
        samples: K of the log-likelihood L_K.
        n: How many test items, drawn by the seed; 1,000, or all where there are fewer, unless given.
        chunk: Samples at a time.
        seed: Seed of the key for choice, observation and noise.
        data: The data's file or folder, if it has moved since training.
        data_dir: Where named data sets are kept now; where they were in training unless given.
        device: Where to compute.
        out: JSON file; evaluation.json in the run's folder unless given (evaluation-2.json where that says otherwise).
    """
    _check_out(out)
    at = runs.load(run, device=runs.device(device), data=data, data_dir=data_dir)
    with _bar("sample") as progress:
        report = reports.evaluation(at, samples=samples, n=n, chunk=chunk, seed=seed, progress=progress)
    print(reports.table(report))
    _write_report(at, "evaluation", report, reports.figures(report), out)


def variance(
    run: RunPath,
    /,
    *,
    estimators: str | None = None,
    noise: str = "iid",
    samples: int | None = None,
    replicates: int = 1000,
    chunk: int | None = None,
    seed: int = 0,
    batch: int | None = None,
    target_se: float | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    device: Device = "auto",
    out: str | None = None,
) -> None:
    """Compare the gradient variance of estimators at a run's parameters, or at an untrained system's.

    Prints a table, and writes variance.json and figures. The numbers repeat to the bit, but for times.

    Args:
        run: The run's folder, or the name of a system, to be taken as the seed starts it.
        estimators: Names with commas between them, as iwae,dreg,renyi:0.5; others are held against the first. The run's
            own, elbo_mc, stl, iwae and dreg unless given.
        noise: Noise schemes with commas between them; each estimator is taken under all that it allows.
        samples: Monte-Carlo samples K for each datum; the run's own number unless given.
        replicates: Independent draws of the noise.
        chunk: Replicates at a time; by the model's size unless given. Another number changes rounding.
        seed: Seed of the key for the batch, its observation and the noise (and for an untrained system's parameters).
        batch: How many training data the gradient is of; the run's own number unless given.
        target_se: Go on, in stages, until every ratio's relative standard error is below this.
        data: The data's file or folder, if it has moved since training.
        data_dir: Where named data sets are kept now; where they were in training unless given.
        device: Where to compute.
        out: JSON file; variance.json in the run's folder unless given (variance-2.json where that says otherwise).
    """
    _check_out(out)
    where = runs.device(device)
    if not Path(run).exists() and run not in RECIPES and "/" not in run:
        raise unknown("system, and no run's folder,", run, RECIPES)
    if run in RECIPES and not Path(run).exists():
        at = runs.untrained(run, seed=seed, device=where, data=data, data_dir=data_dir or "data")
        at = at._replace(path=Path(_fresh(f"{run}-untrained")))
    else:
        at = runs.load(run, device=where, data=data, data_dir=data_dir)
    with _bar("replicate") as progress:
        found, report = reports.comparison(
            at,
            names=_names(estimators) if estimators is not None else None,
            schemes=_names(noise),
            samples=samples,
            replicates=replicates,
            chunk=chunk,
            batch=batch,
            seed=seed,
            target_se=target_se,
            progress=progress,
        )
    state = "untrained" if at.path.name.startswith(f"{run}-untrained") else f"as in {at.path}"
    data_ = f"{found.batch:,} of its training data, seed {seed}"
    print(f"{at.config.system}, {state}; {data_}; gradients of nats per example")
    print(found)
    for why in report["left_out"]:
        print(f"left out: {why}")
    figures = pictures.of_comparison(found, name=at.config.system)
    _write_report(at, "variance", report, figures, out)


def list_(what: tyro.conf.Positional[Literal["systems", "estimators", "noise", "data"]] = "systems", /) -> None:
    """List the named systems, estimators, noise schemes or data sets.

    Args:
        what: What to list.
    """
    if what == "estimators":
        print(_ESTIMATORS_HEAD)
        for name in estimators.TABLE:
            print(_estimator_lines(name))
        return
    rows = {
        "systems": {name: recipe.about for name, recipe in RECIPES.items()},
        "noise": {name: (scheme.__doc__ or "").splitlines()[0] for name, scheme in noise.TABLE.items()},
        "data": {name: loader.__doc__ or "" for name, loader in data.NAMED.items()},
    }[what]
    width = max(map(len, rows))
    for name, about in rows.items():
        print(f"{name:{width}}  {about}".rstrip())


_ESTIMATORS_HEAD = """\
Up the gradient goes   encoder: sum_k path_k d_k + score_k s_k   decoder, prior: sum_k theta_k ∇ log w_k
with f = log w, v = softmax_k(f), d_k the derivative of log w_k through z_k alone, s_k = ∇ log q(z_k|x) at fixed z_k;
u = softmax_k((1-α) f), v_g = softmax_k(f) within one of M groups, r = β/K + (1-β)v. Under each its target, whether its
gradients are unbiased for that, what else is to be known, and its papers.
"""


def _estimator_lines(name: str) -> str:
    """An estimator's weights, target, biases and papers."""
    example = estimators.EXAMPLES[name]
    claims = estimators.parse(example).claims
    bias = {True: "unbiased", False: "biased"}
    parts = [
        claims.target,
        f"encoder {bias[claims.unbiased_encoder]}, decoder {bias[claims.unbiased_decoder]}",
        *([claims.note] if claims.note else []),
        *(["needs independent noise"] if claims.noise == "independent" else []),
        ", ".join(claims.papers),
    ]
    return f"{example:18} {estimators.weights_of(name)}\n{'':18} {'; '.join(parts)}"


def main(args: Sequence[str] | None = None) -> None:
    """The console script."""
    commands: dict[str, Callable[..., Any]] = {
        "train": train,
        "evaluate": evaluate,
        "variance": variance,
        "sample": sample,
        "reconstruct": reconstruct,
        "interpolate": interpolate,
        "latent": latent,
        "list": list_,
    }
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="funcvae",
            description=f"funcvae {__version__}",
            args=args,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except KeyboardInterrupt:
        print("funcvae: stopped (a run's parameters are written at its end)", file=sys.stderr)
        sys.exit(130)
    except (FuncvaeError, OSError) as error:  # an OSError: a full disk, a folder that may not be read
        print(f"funcvae: error: {error}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def _bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that is told what is done, and of how much; it is gone at the end."""
    with tqdm(total=1, unit=unit, unit_scale=True, dynamic_ncols=True, leave=False, delay=0.5) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def _check_out(out: str | None) -> None:
    """Raises BadValue unless a JSON file may have this name."""
    if out is None:
        return
    if Path(out).is_dir():
        raise BadValue(f"--out {out} is a folder: give the name of a JSON file")
    if Path(out).suffix != ".json":
        raise BadValue(f"--out {out}: give the name of a JSON file, NAME.json")


def _names(given: str) -> list[str]:
    """Names with commas between them."""
    return [name.strip() for name in given.split(",") if name.strip()]


def _write_report(at: runs.Run, kind: str, report: reports.Report, figures: dict[str, Figure], out: str | None) -> None:
    """Writes a report and its figures, beside earlier ones unless `out` names its file, and prints where."""
    path = files.write_beside(Path(out or at.path / f"{kind}.json"), files.as_json(report), over=out is not None)
    print(path)
    suffix = path.stem.removeprefix(kind) if out is None else None
    for name, figure in figures.items():
        stem = f"{path.stem}_{name}" if suffix is None else f"{name}{suffix}"
        print(plots.save(figure, (at.path / "figures" if out is None else path.parent) / f"{stem}.png"))


def _fresh(system: str) -> str:
    """A folder that is not there yet: runs/SYSTEM-DATE-TIME, with a number where two start in one second."""
    stem = Path("runs", f"{system}-{datetime.now():%Y%m%d-%H%M%S}")
    path, count = stem, 1
    while path.exists():
        count += 1
        path = stem.with_name(f"{stem.name}-{count}")
    return str(path)
