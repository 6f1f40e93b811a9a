"""Trains the models of the atlas, and measures the gradients of every unbiased estimator that fits them.

    python examples/atlas/measure.py --root data --out atlas

Started again, it continues. Started once per core, the processes share the work. `analyse.py` makes tables and figures.

The runs of each grid in `grids/` are trained by `runs.train_grid`. Each is measured at its start, after a tenth of its
steps and at its end, with several numbers of samples, on one batch of its training data. The replicates are doubled
until the ratio of every estimator's variance to the reference's is known well enough (see `replicates`).
"""

import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import cyclopts
import torch
from sharing import share

import funcvae as fv
from funcvae.errors import BadType, BadValue

HERE = Path(__file__).parent
GRIDS = sorted((HERE / "grids").glob("*.json"))
LEFT_OUT = ("beta_elbo", "free_bits")
"""Their objectives are not bounds of log p(x)."""
K_IS_ONE = ("local_expectation",)
"""Measured with K = 1 only: for `sbn_vae` it decodes 201 points for each sample."""
ESTIMATORS = {
    estimator.name: estimator
    for estimator in map(fv.estimators.parse, fv.estimators.EXAMPLES.values())
    if estimator.name.partition(":")[0] not in LEFT_OUT
    if estimator.claims.unbiased_encoder and estimator.claims.unbiased_decoder
}
"""The unbiased estimators. Those with an argument have that of `funcvae list estimators`."""
NOISE = {"iid": fv.noise.iid, "mirrored": fv.noise.mirrored}
REFERENCES = ("elbo_mc, iid", "iwae, iid", "disarm, iid", "disarm_local, iid")
"""The variance of the first that fits the model is the unit of the others of its family."""
PHASES = ("start", "tenth", "end")
SAMPLES = (1, 4, 16, 64)
BATCH = 10
FIRST = 50
"""The first number of replicates. `compare` doubles it at most seven times, to 6,400."""
HEAVY_TAILED = {
    "gaussian2d_vae": dict.fromkeys(SAMPLES, 800),
    "mnist_vae": {1: 800, 4: 800, 16: 200, 64: 100},
}
"""Systems with gradients of so heavy tails that no number of replicates is enough: their replicates for each K."""
HELD_OUT = ("mnist_bn_vae", "linear_vae")
"""The systems that the card is tested on. Of the other systems it is tested on the runs with seed `HELD_OUT_SEED`."""
HELD_OUT_SEED = 3
OWN = {"linear_vae": "examples/atlas/linear.py:linear_vae"}
"""Systems that funcvae does not name."""

Arms = dict[str, tuple[fv.Estimator, fv.noise.Noise]]


def runs_of_grid(path: Path, out: Path, root: str) -> list[Path]:
    """Trains the runs of a grid, and returns their folders."""
    content = json.loads(path.read_text())
    grid = fv.runs.parse_grid({**content, "settings": {"data_dir": root, **content["settings"]}})
    folder = out / "runs" / path.stem
    names = fv.runs.train_grid(grid, folder, measure=fv.runs.variance_report, progress=fv.tracking.bar)
    return [folder / "cells" / name for name in names]


def families(arms: Arms) -> dict[str, Arms]:
    """The estimators of the ELBO, and all others. Ratios refer to one estimator of each family."""
    found: dict[str, Arms] = {}
    for name, (estimator, scheme) in arms.items():
        is_elbo = estimator.claims_under(scheme).target == "ELBO"
        found.setdefault("ELBO" if is_elbo else "L_K", {})[name] = estimator, scheme
    return found


def at_phase(folder: Path, phase: str) -> fv.runs.Run:
    """A run at its start, after a tenth of its steps, or at its end."""
    system = OWN.get(folder.name.split("-")[0])
    run = fv.runs.load(folder, system=system)
    if phase == "end":
        return run
    if phase == "tenth":
        return fv.runs.load(folder, checkpoint=run.all_steps // 10, system=system)
    config = run.config
    return fv.runs.initial_run(
        system or config.system, model=config.model, seed=config.seed, data=config.data, data_dir=config.data_dir
    )


def batch_of(run: fv.runs.Run) -> tuple[Any, fv.random.Key]:
    """A batch of a run's training data, as the model sees it, and the key of the noise."""
    choice_key, observe_key, noise_key = fv.random.split(fv.random.key(run.config.seed), 3)
    train = run.dataset().train
    return run.observed(observe_key, train, fv.random.permutation(choice_key, len(train))[:BATCH]), noise_key


def fitting(run: fv.runs.Run, x: Any, samples: int) -> Arms:
    """The unbiased estimators under each noise scheme, without those that do not fit the model or K."""
    q, _ = run.model.encode(run.params, run.state, x[:1])
    arms: Arms = {}
    for scheme_name, scheme in NOISE.items():
        for name, estimator in ESTIMATORS.items():
            if samples > 1 and name in K_IS_ONE:
                continue
            try:
                estimator.claims_under(scheme)
                eps = scheme(fv.random.key(0), samples, tuple(q.loc.shape))
                estimator(*run.trained, x[:1], eps, train=False)
            except (BadValue, BadType):
                continue
            arms[f"{name}, {scheme_name}"] = estimator, scheme
    return arms


def is_held_out(system: str, seed: int) -> bool:
    """Whether the card is tested on a run, and so not made from it."""
    return system in HELD_OUT or seed == HELD_OUT_SEED


def replicates(run: fv.runs.Run, samples: int) -> dict[str, Any]:
    """How many replicates `compare` takes: until ratios are known to 5%, or to 10% with K = 64 or if held out."""
    if run.config.system.name in HEAVY_TAILED:
        return {"replicates": HEAVY_TAILED[run.config.system.name][samples]}
    wide = samples == 64 or is_held_out(run.config.system.name, run.config.seed)
    return {"replicates": FIRST, "target_se": 0.1 if wide else 0.05}


def measured(folder: Path, phase: str, samples: int) -> dict[str, Any]:
    """The comparison of all fitting estimators at a phase of a run."""
    run = at_phase(folder, phase)
    x, noise_key = batch_of(run)
    found = {}
    for family, arms in families(fitting(run, x, samples)).items():
        reference = next((name for name in REFERENCES if name in arms), next(iter(arms)))
        found[family] = fv.variance.compare(
            arms, *run.trained, x, noise_key, samples=samples, reference=reference, timings=0,
            **replicates(run, samples),
        ).to_dict()  # fmt: skip
    return {"system": run.config.system.name, "seed": run.config.seed, "phase": phase, "comparisons": found}


def main(*grids: str, root: str = "data", out: Path = Path("atlas")) -> None:
    """Trains and measures.

    Args:
        grids: Names of files in `grids/`; by default all.
        root: Folder of the named data sets.
        out: Folder of the runs and the measurements.
    """
    torch.set_num_threads(1)
    if unknown := set(grids) - {path.stem for path in GRIDS}:
        raise BadValue(f"no grids {sorted(unknown)}: choose from {', '.join(path.stem for path in GRIDS)}")
    for path in GRIDS:
        if not grids or path.stem in grids:
            folders = runs_of_grid(path, out, root)
            cells = itertools.product(folders, PHASES, SAMPLES)
            names = {f"{folder.name}-{phase}-K{k}.json": (folder, phase, k) for folder, phase, k in cells}
            files = {out / "cells" / name: partial(measured, *cell) for name, cell in names.items()}
            share(files, f"measuring {path.stem}")


if __name__ == "__main__":
    cyclopts.run(main)
