"""Trains a small model with JAX; the environment chooses the allocator."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from integration.gpu.workloads import steps

WIDTH = 512
RATE = 0.3


def main() -> None:
    keys = jax.random.split(jax.random.PRNGKey(3), 4)
    weights = [jax.random.normal(key, (WIDTH, WIDTH)) * 0.05 for key in keys[:2]]
    images, wanted = (jax.random.normal(key, (256, WIDTH)) for key in keys[2:])

    def loss(weights: list[jax.Array]) -> jax.Array:
        hidden = jnp.tanh(images @ weights[0])
        return jnp.mean((hidden @ weights[1] - jnp.tanh(wanted)) ** 2)

    def train_once(weights: list[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
        value, slopes = jax.value_and_grad(loss)(weights)
        return [w - RATE * s for w, s in zip(weights, slopes, strict=True)], value

    train = jax.jit(train_once)

    def step(_: int) -> float:
        nonlocal weights
        weights, value = train(weights)
        return float(value)

    steps.run(step, lambda: b"".join(np.asarray(w).tobytes() for w in weights))


if __name__ == "__main__":
    main()
