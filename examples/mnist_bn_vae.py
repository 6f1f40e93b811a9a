"""The effect of the weight of the squared error: python examples/mnist_bn_vae.py --root DATA

With alpha = 1 the mean squared error of a digit is less than a nat, and so less than the KL of a useful code. Every
image decodes to the same grey mean. With alpha = 784, which gives the sum over the pixels, the same networks
distinguish the digits.
"""

from pathlib import Path

import cyclopts

import funcvae as fv
from funcvae.models.recipe import from_tanh_range, to_tanh_range


def main(steps: int = 4690, source: str = "mnist", root: str = "data", out: str = "figures") -> list[Path]:
    digits = fv.data.load(source, root=root)
    observe_key, draw_key = fv.random.split(fv.random.key(1))
    shown = to_tanh_range(observe_key, digits.test[:20])
    saved = []
    for alpha in (1, 784):
        model, opt, elbo = fv.models.mnist_bn_vae(alpha=alpha), fv.optim.adam(1e-3), fv.estimators.elbo()
        ts = fv.train.init(model, opt, fv.random.key(0))
        train = digits.train[: 128 * steps]
        per_epoch = -(-len(train) // 128)
        epochs = -(-steps // per_epoch)
        ts, _ = fv.train.fit(
            ts, model, elbo, opt, train, epochs=epochs, observe=to_tanh_range, progress=fv.tracking.bar,
            compile=fv.compilation.pays(steps, ts.params, train[:128].numel()),
        )  # fmt: skip

        q, _ = model.encode(ts.params, ts.state, shown)
        p, _ = model.prior(ts.params, ts.state, q.loc)
        kl = fv.distributions.kl(q, p).sum(-1).mean()
        print(f"alpha = {alpha}: the KL of a code is {kl:.2f} nats")
        name = f"mnist_bn_vae, alpha = {alpha}"
        figure = fv.figures.of_model.reconstructions(
            model, ts.params, ts.state, shown, draw_key, pixels=from_tanh_range, name=name
        )
        saved.append(fv.figures.save(figure, f"{out}/mnist_bn_vae_alpha{alpha}.png"))
    return saved


if __name__ == "__main__":
    print(*cyclopts.run(main, result_action="return_value"), sep="\n")
