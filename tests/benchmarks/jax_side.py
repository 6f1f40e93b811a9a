"""Worker of `step.py` and `variance.py`: the same model and step in JAX, under `jit`. Needs only `jax` and `optax`.

python tests/benchmarks/jax_side.py bernoulli|burda N
"""

import sys
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
from workers import serve


def init(key, sizes):
    """Layers with uniform weights, as in torch's Linear."""
    layers = []
    for k, (n, m) in zip(jax.random.split(key, len(sizes) - 1), pairwise(sizes), strict=True):
        w, b = jax.random.split(k)
        bound = n**-0.5
        draw = partial(jax.random.uniform, minval=-bound, maxval=bound)
        layers.append({"w": draw(w, (n, m)), "b": draw(b, (m,))})
    return layers


def mlp(layers, x, activation):
    for layer in layers[:-1]:
        x = activation(x @ layer["w"] + layer["b"])
    return x @ layers[-1]["w"] + layers[-1]["b"]


def log_p_x(logits, x):
    return -optax.sigmoid_binary_cross_entropy(logits, x).sum(-1)


def elbo(params, x, eps):
    """The ELBO of the Bernoulli VAE, with its KL in closed form."""
    mu, logvar = jnp.split(mlp(params["encoder"], x, jax.nn.relu), 2, -1)
    z = mu + jnp.exp(logvar / 2) * eps
    logits = jax.vmap(lambda z: mlp(params["decoder"], z, jax.nn.relu))(z)
    kl = 0.5 * (mu**2 + jnp.exp(logvar) - 1 - logvar).sum(-1)
    return log_p_x(logits, x).mean(0) - kl


def log_normal(z, mu, log_sigma):
    return (-0.5 * ((z - mu) / jnp.exp(log_sigma)) ** 2 - log_sigma - 0.5 * jnp.log(2 * jnp.pi)).sum(-1)


def log_weights(params, x, eps, activation, halved, hold=lambda q: q):
    """z, and the function from z to log w [N, B]; `hold` is applied to q's parameters in log q(z|x)."""
    mu, log_sigma = jnp.split(mlp(params["encoder"], x, activation), 2, -1)
    log_sigma = log_sigma / 2 if halved else log_sigma
    z = mu + jnp.exp(log_sigma) * eps
    return (
        z,
        lambda z: (
            log_p_x(jax.vmap(lambda z: mlp(params["decoder"], z, activation))(z), x)
            + log_normal(z, 0.0, 0.0)
            - log_normal(z, *hold((mu, log_sigma)))
        ),
    )


def iwae(params, x, eps, activation=jnp.tanh, halved=False):
    z, log_w = log_weights(params, x, eps, activation, halved)
    return jax.nn.logsumexp(log_w(z), 0) - jnp.log(len(eps))


SYSTEMS = {
    "bernoulli": (128, 20, (784, 400, 40), (20, 400, 784), elbo, 1e-8, False),
    "burda": (20, 50, (784, 200, 200, 100), (50, 200, 200, 784), iwae, 1e-4, True),
}


def product_error(n):
    """Relative error of a product with the size of the decoder's largest, against float64, in Frobenius norms."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape, np.float32) for shape in ((n, 400), (400, 784)))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    found = np.asarray(jax.jit(jnp.matmul)(a, b))
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def main(system, samples):
    batch, latent, encoder, decoder, bound, eps, binarize = SYSTEMS[system]
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"encoder": init(keys[0], encoder), "decoder": init(keys[1], decoder)}
    x = (jax.random.uniform(keys[2], (batch, 784)) < 0.3).astype(jnp.float32)
    opt = optax.adam(1e-3, eps=eps)

    def step(params, opt_state, key, x):
        noise_key, observe_key = jax.random.split(key)
        if binarize:
            x = jax.random.bernoulli(observe_key, x).astype(jnp.float32)
        noise = jax.random.normal(noise_key, (samples, batch, latent))
        loss, grads = jax.value_and_grad(lambda params: -bound(params, x, noise).mean())(params)
        updates, opt_state = opt.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss, optax.global_norm(grads)

    step = jax.jit(step, donate_argnums=(0, 1))
    carried = [params, opt.init(params)]
    key = jax.random.key(1)

    def call():
        params, opt_state, *report = step(*carried, key, x)
        carried[:] = params, opt_state
        jax.block_until_ready((carried, report))

    call()
    serve({"version": f"jax {jax.__version__}", "error": product_error(samples * batch)}, call)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
