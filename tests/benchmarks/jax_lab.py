"""Worker of `variance.py`: mean and variance of a gradient over replicates in JAX, `scan` over `vmap` of `jax.grad`.

python tests/benchmarks/jax_lab.py iwae|dreg REPLICATES CHUNK
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
from jax_side import init, log_weights
from workers import serve

BATCH, SAMPLES, LATENT = 32, 8, 20
RELU = partial(log_weights, activation=jax.nn.relu, halved=True)


def iwae(params, x, eps):
    z, log_w = RELU(params, x, eps)
    return -jax.nn.logsumexp(log_w(z), 0).mean()


def dreg(params, x, eps):
    """A surrogate with q's parameters held constant in log w; its gradient has v² along z and v along the decoder."""
    z, log_w = RELU(params, x, eps, hold=jax.lax.stop_gradient)
    v = jax.lax.stop_gradient(jax.nn.softmax(log_w(z), 0))
    scaled = v[..., None] * z + jax.lax.stop_gradient((1 - v[..., None]) * z)  # equal to z, with v times its gradient
    return -(v * log_w(scaled)).sum(0).mean()


def main(estimator, replicates, chunk):
    keys = jax.random.split(jax.random.key(0), 4)
    params = {"encoder": init(keys[0], (784, 400, 40)), "decoder": init(keys[1], (20, 400, 784))}
    x = (jax.random.uniform(keys[2], (BATCH, 784)) < 0.3).astype(jnp.float32)
    gradient = jax.grad({"iwae": iwae, "dreg": dreg}[estimator])

    def one(params, x, key):
        return gradient(params, x, jax.random.normal(key, (SAMPLES, BATCH, LATENT)))

    @jax.jit
    def variance(params, x, key):
        def body(sums, keys):
            grads = jax.vmap(one, (None, None, 0))(params, x, keys)
            total, square = sums
            return (
                jax.tree.map(lambda t, g: t + g.sum(0), total, grads),
                jax.tree.map(lambda s, g: s + (g * g).sum(0), square, grads),
            ), None

        zeros = jax.tree.map(jnp.zeros_like, params)
        keys = jax.random.split(key, (replicates // chunk, chunk))
        (total, square), _ = jax.lax.scan(body, (zeros, zeros), keys)
        return jax.tree.map(lambda t, s: (s - t * t / replicates) / (replicates - 1), total, square)

    serve({"version": f"jax {jax.__version__}"}, lambda: jax.block_until_ready(variance(params, x, keys[3])))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
