"""Takes over a trained PyTorch VAE, trains it on, and hands it back: python examples/from_pytorch.py"""

import torch
from torch.nn import Linear, Module, Sequential, Tanh

import funcvae as fv


class PlainVAE(Module):
    """A VAE of points in the plane, with its loss, as in a tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = (Sequential(Linear(2, 32), Tanh(), Linear(32, 4)) for _ in range(2))

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        mu, logvar = self.encoder(x).chunk(2, -1)
        mean, logvar_x = self.decoder(mu + (logvar / 2).exp() * torch.randn_like(mu)).chunk(2, -1)
        kl = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(-1)
        return (kl - torch.distributions.Normal(mean, (logvar_x / 2).exp()).log_prob(x).sum(-1)).mean()


def main(steps: int = 300) -> tuple[fv.variance.Comparison, PlainVAE]:
    x, key, net = fv.data.gaussian2d(fv.random.key(0), 2000), fv.random.key(1), PlainVAE()
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    for rows in torch.randint(len(x), (steps, 100)):
        adam.zero_grad()
        net.loss(x[rows]).backward()
        adam.step()
    vae = fv.from_module(net, encode="encoder", decode="decoder", latent=2, likelihood=fv.heads.normal_logvar)
    arms = {"elbo": fv.estimators.elbo(), "iwae": fv.estimators.iwae(), "dreg": fv.estimators.dreg()}
    print(found := fv.variance.compare(arms, *vae, x[:16], key, samples=8, replicates=500))
    ts = fv.train.init(vae.model, opt := fv.optim.adam(1e-3), key)  # starts from the weights of net
    ts, _ = fv.train.fit(ts, vae.model, arms["dreg"], opt, x, epochs=2, batch=100, samples=8, compile=False)
    net.load_state_dict(fv.to_module(net, ts.params, ts.state).state_dict())
    return found, net


if __name__ == "__main__":
    main()
