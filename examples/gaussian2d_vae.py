"""A model of points in the plane learns their density: python examples/gaussian2d_vae.py

Keeps samples of the model after every step, and shows how their distribution approaches that of the data: a figure and
an animation. Then plots the densities of model and data.
"""

from pathlib import Path

import cyclopts
import torch

import funcvae as fv


def main(steps: int = 2000, out: str = "figures") -> list[Path]:
    points = fv.data.load("gaussian2d")
    model, opt = fv.models.gaussian2d_vae(), fv.optim.adam(1e-3)
    ts = fv.train.init(model, opt, fv.random.key(0))
    sample_key, keep_key = fv.random.split(fv.random.key(1))
    kept = []

    def keep(step: int, ts: fv.train.TrainState) -> None:
        key = fv.random.fold_in(keep_key, step)
        kept.append(fv.figures.decoding.samples(model, ts.params, ts.state, key, 1000))

    train = points.train[: 1000 * steps]
    per_epoch = -(-len(train) // 1000)
    epochs = -(-steps // per_epoch)
    ts, _ = fv.train.fit(
        ts,
        model,
        fv.estimators.elbo(),
        opt,
        train,
        epochs=epochs,
        batch=1000,
        samples=4,
        compile=False,  # a run of small steps ends before the compiler
        progress=fv.tracking.bar,
        watch=keep,
    )

    trained = fv.Trained(model, ts.params, ts.state)
    x = fv.figures.decoding.samples(*trained, sample_key, 100_000)
    print(f"the model's mean {x.mean(0).tolist()} and covariance {x.T.cov().tolist()}")
    densities = fv.figures.of_model.point_samples(*trained, sample_key, 10_000, points, name="gaussian2d_vae")
    samples = torch.stack(kept).numpy()
    evolution = fv.figures.of_results.evolution(samples, points, name="gaussian2d_vae")
    frames = fv.figures.of_results.evolution_frames(samples, points, name="gaussian2d_vae")
    return [
        fv.figures.save(densities, f"{out}/gaussian2d_vae_densities.png"),
        fv.figures.save(evolution, f"{out}/gaussian2d_vae_evolution.png"),
        fv.figures.save_gif(frames, f"{out}/gaussian2d_vae_evolution.gif", size=400, seconds=6, back=False),
    ]


if __name__ == "__main__":
    print(*cyclopts.run(main, result_action="return_value"), sep="\n")
