"""What the benchmark programs share: interleaved timing, and the model that PyTorch users would write."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INPUTS, HIDDEN, LATENT, BATCH = 784, 400, 20, 128


def interleaved(sides: dict[str, Callable[[], object]], *, rounds: int, warmup: int = 10) -> dict[str, float]:
    """The median milliseconds of each side. One call of each side in turn, so that all meet the same machine."""
    for side in sides.values():
        for _ in range(warmup):
            side()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: sorted(values)[rounds // 2] for name, values in times.items()}


def make_encoder() -> nn.Module:
    return nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT))


def make_decoder() -> nn.Module:
    return nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, INPUTS))


def module_step(x: Tensor, samples: int) -> Callable[[], None]:
    """The step of a plain loop: `nn.Module`, `torch.randn`, `backward`, `torch.optim.Adam(foreach=True)`."""
    encoder, decoder = make_encoder(), make_decoder()
    opt = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3, foreach=True)

    def step() -> None:
        mu, logvar = encoder(x).chunk(2, -1)
        z = mu + (logvar / 2).exp() * torch.randn(samples, *mu.shape)
        logits = decoder(z.flatten(0, 1)).unflatten(0, (samples, -1))
        nll = F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1).mean(0)
        kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(-1)
        opt.zero_grad()
        (nll + kl).mean().backward()
        opt.step()

    return step
