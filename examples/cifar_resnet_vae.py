"""Small photographs, with a ResNet-18 as encoder and decoder: python examples/cifar_resnet_vae.py --source FOLDER

The scale of the likelihood is learned. It shrinks as the reconstructions improve, and every halving adds up to
3,072 log 2 nats. This takes minutes on a CPU.
"""

from pathlib import Path

import cyclopts

import funcvae as fv
from funcvae.models.cifar import standardize, to_pixels


def main(steps: int = 300, source: str = "cifar10", root: str = "data", out: str = "figures") -> list[Path]:
    photos = fv.data.load(source, root=root)
    height, width = photos.train.shape[2:]
    model, opt = fv.models.cifar_resnet_vae(height=height, width=width), fv.optim.adam(1e-4)
    ts = fv.train.init(model, opt, fv.random.key(0))
    per_epoch = min(steps, -(-len(photos.train) // 32))
    train, epochs = photos.train[: 32 * per_epoch], -(-steps // per_epoch)
    ts, history = fv.train.fit(
        ts,
        model,
        fv.estimators.elbo_mc(),
        opt,
        train,
        epochs=epochs,
        batch=32,
        observe=standardize,
        compile=fv.compilation.pays(steps, ts.params, train[:32].numel()),
        progress=fv.tracking.bar,
    )
    scale = ts.params["decoder"]["log_scale"].exp()
    print(f"ELBO from {history.bound[0]:.0f} to {history.bound[-10:].mean():.0f} nats; scale {scale.item():.2f}")

    observe_key, draw_key = fv.random.split(fv.random.key(1))
    shown = standardize(observe_key, photos.test[:: max(1, len(photos.test) // 20)][:20])
    trained, name = fv.Trained(model, ts.params, ts.state), "cifar_resnet_vae"
    drawn = {
        "reconstructions": fv.figures.of_model.reconstructions(*trained, shown, draw_key, pixels=to_pixels, name=name),
        "training": fv.figures.of_results.training(history, name="ELBO", title="Training of cifar_resnet_vae"),
    }
    return [fv.figures.save(figure, f"{out}/cifar_resnet_vae_{what}.png") for what, figure in drawn.items()]


if __name__ == "__main__":
    print(*cyclopts.run(main, result_action="return_value"), sep="\n")
