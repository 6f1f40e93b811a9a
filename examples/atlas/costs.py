"""The time of a gradient of each estimator: python examples/atlas/costs.py --root data --out atlas

Run it alone on the machine, after `measure.py`. It times the eager gradient of a batch for every system of the atlas,
every estimator that fits and every K, on one thread, and writes `costs.json`: the least and the median of several
timings, in milliseconds. Noise schemes do not change the time of a gradient, so only independent samples are timed.
Then it times the training steps of `bounds.py`, and writes `step_times.json`.
"""

import itertools
import json
import time
from pathlib import Path

import cyclopts
import torch
from bounds import EXPERIMENTS
from measure import SAMPLES, at_phase, batch_of, fitting
from tqdm.auto import tqdm

import funcvae as fv

TIMINGS = 9
WINDOW = 40
"""The steps of each timing of a training step."""


def ms_per_step(name: str, spec: str) -> float:
    """The time of a training step of an experiment of `bounds.py` in ms: the least of several windows of steps."""
    system, experiment = fv.models.SYSTEMS[name], EXPERIMENTS[name]
    init_key, data_key = fv.random.split(fv.random.key(0))
    shape = (experiment.batch * WINDOW * TIMINGS, *system.recipe.shape)
    train = fv.random.bernoulli(data_key, 0.3, shape).float()  # the time does not depend on the values
    model, opt = system.build(train), system.recipe.optimizer(experiment.steps)
    ends = []

    def watch(step: int, ts: fv.train.TrainState) -> None:
        if step % WINDOW == 0:
            ends.append(time.perf_counter())

    fv.train.fit(
        fv.train.init(model, opt, init_key), model, fv.estimators.parse(spec), opt, train, batch=experiment.batch,
        samples=experiment.samples, watch=watch, compile=False,
    )  # fmt: skip
    return 1e3 * min(end - begin for begin, end in itertools.pairwise(ends)) / WINDOW


def main(root: str = "data", out: Path = Path("atlas")) -> None:
    """Times the gradients.

    Args:
        root: Folder of the named data sets.
        out: Folder that `measure.py` wrote.
    """
    torch.set_num_threads(1)
    found = []
    folders = sorted(out.glob("runs/*/cells/*-s0"))
    for folder, samples in tqdm([(folder, k) for folder in folders for k in SAMPLES], unit="comparison"):
        run = at_phase(folder, "end")
        x, key = batch_of(run)
        arms = {name: arm for name, arm in fitting(run, x, samples).items() if arm[1] is fv.noise.iid}
        compared = fv.variance.compare(arms, *run.trained, x, key, samples=samples, replicates=2, timings=TIMINGS)
        found += [
            {
                "system": run.config.system.name, "samples": samples, "estimator": row.estimator,
                "ms": 1e3 * row.seconds, "median_ms": 1e3 * row.median_seconds,
            }
            for row in compared.rows.values()
        ]  # fmt: skip
    (out / "costs.json").write_text(json.dumps(found, indent=1))
    steps = {name: {spec: ms_per_step(name, spec) for spec in each.estimators} for name, each in EXPERIMENTS.items()}
    (out / "step_times.json").write_text(json.dumps(steps, indent=1))
    print(json.dumps(steps, indent=1))


if __name__ == "__main__":
    cyclopts.run(main)
