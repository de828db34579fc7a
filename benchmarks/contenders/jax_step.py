"""Implements one-pass IWAE-DReG in JAX: one vjp of log p, whose gradient in z is then scaled."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contenders import DATA_DIM, EPSILON, HIDDEN, LATENT_DIM, LEARNING_RATE

# What the products are made in, by the name's ending.
_PRECISIONS = {"": "highest", "tf32": "tensorfloat32", "bfloat16": "highest"}


def make(name: str, batch_size: int, num_samples: int):
  """Makes steps of `jit`, of `jit-tf32` (on a GPU) or of `jit-bfloat16`."""
  precision = name.partition("-")[2]
  jax.config.update("jax_default_matmul_precision", _PRECISIONS[precision])
  product = _bfloat16_product if precision == "bfloat16" else jnp.matmul
  random = np.random.default_rng(0)
  encoder = _mlp_variables(random, [DATA_DIM, HIDDEN, HIDDEN, 2 * LATENT_DIM])
  decoder = _mlp_variables(random, [LATENT_DIM, HIDDEN, HIDDEN, DATA_DIM])
  variables = (encoder, decoder)
  zeros = functools.partial(jax.tree.map, jnp.zeros_like)
  state = [variables, zeros(variables), zeros(variables), jnp.zeros([])]
  x_all = jnp.asarray(random.random((2000, DATA_DIM)) < 0.2, jnp.float32)

  def log_prob(decoder, z, x):
    logits = _mlp(z.reshape(-1, LATENT_DIM), decoder, product).reshape(
      num_samples, batch_size, DATA_DIM
    )
    likelihood = (x * logits - jax.nn.softplus(logits)).sum(-1)
    return likelihood - 0.5 * (z**2).sum(-1) - 0.5 * LATENT_DIM * math.log(2 * math.pi)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, x, key):
    (encoder, decoder), first, second, count = state
    noise = jax.random.normal(key, (num_samples, batch_size, LATENT_DIM))

    def propose(encoder):
      loc, raw = jnp.split(_mlp(x, encoder, product), 2, axis=-1)
      scale = jax.nn.softplus(raw + 0.25)
      return loc + scale * noise, jax.lax.stop_gradient((loc, scale))

    z, back_to_encoder, (loc, scale) = jax.vjp(propose, encoder, has_aux=True)

    log_p, back = jax.vjp(lambda decoder, z: log_prob(decoder, z, x), decoder, z)
    standard = (z - loc) / scale
    log_q = (-0.5 * standard**2 - jnp.log(scale) - 0.5 * math.log(2 * math.pi)).sum(-1)
    weights = jax.nn.softmax(log_p - log_q, axis=0)
    decoder_gradient, z_gradient = back(-weights / batch_size)
    # dlog q^/dz = -standard / scale.
    path = weights[..., None] * z_gradient
    path -= (weights**2)[..., None] / batch_size * standard / scale
    (encoder_gradient,) = back_to_encoder(path)
    gradient = (encoder_gradient, decoder_gradient)

    count += 1
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
    second = jax.tree.map(lambda s, g: 0.999 * s + 0.001 * g**2, second, gradient)
    rate = LEARNING_RATE * jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
    variables = jax.tree.map(
      lambda v, m, s: v - rate * m / (jnp.sqrt(s) + EPSILON), (encoder, decoder), first, second
    )
    return [variables, first, second, count]

  holder = [state, 0]

  def run(steps: int) -> None:
    for _ in range(steps):
      state, i = holder
      start = i * batch_size % (len(x_all) - batch_size)
      key = jax.random.key(i)
      holder[:] = step(state, x_all[start : start + batch_size], key), i + 1
    jax.block_until_ready(holder[0])

  return run


def _mlp_variables(random, sizes):
  limits = [math.sqrt(6 / (n + m)) for n, m in itertools.pairwise(sizes)]
  return [
    (jnp.asarray(random.uniform(-limit, limit, (n, m)), jnp.float32), jnp.zeros(m))
    for limit, n, m in zip(limits, sizes, sizes[1:], strict=False)
  ]


def _mlp(rows, variables, product):
  for kernel, bias in variables[:-1]:
    rows = jnp.tanh(product(rows, kernel) + bias)
  kernel, bias = variables[-1]
  return product(rows, kernel) + bias


def _bfloat16_product(rows, kernel):
  return (rows.astype(jnp.bfloat16) @ kernel.astype(jnp.bfloat16)).astype(jnp.float32)
