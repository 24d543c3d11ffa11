"""JAX: the step jitted, called once a step or scanned over many steps in one call.

Everything lives on the device: data, permutation, parameters, moments, random keys. The state is
donated, so that updates happen in place. Optax's adam. In bf16 the operands of the products are
bfloat16; sums, activations, parameters, moments and losses stay float32.
"""

from __future__ import annotations

import functools
import os

import jax
import jax.numpy as jnp
import optax

from peers import Peer, Unavailable

# The thread pool of XLA's cpu client has as many threads as the process has cpus: the harness sets
# the affinity and these variables before this file is imported.
THREADS_FROM = ("NPROC", "PJRT_NPROC")

# Iterations of the scan that XLA may compile as one: 10 % on cpu, and no more beyond four.
UNROLL = 4

# A GPU's default for float32 products is tf32.
PRODUCTS = {"fp32": "highest", "tf32": "tensorfloat32", "bf16": "default"}


def init_mlp(key, widths, batchnorm: bool):
    """PyTorch's initialisation of Linear layers, as (parameters, running statistics)."""
    params, stats = [], []
    for i, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
        key, k1, k2 = jax.random.split(key, 3)
        bound = before**-0.5
        layer = {
            "w": jax.random.uniform(k1, (before, after), minval=-bound, maxval=bound),
            "b": jax.random.uniform(k2, (after,), minval=-bound, maxval=bound),
        }
        if batchnorm and i < len(widths) - 2:
            layer |= {"scale": jnp.ones(after), "shift": jnp.zeros(after)}
            stats.append({"mean": jnp.zeros(after), "var": jnp.ones(after)})
        params.append(layer)
    return params, stats


def mlp(params, stats, x, *, slope, dropout, key, dtype):
    """All layers of a network; returns (output before the last activation, new statistics)."""
    updated = []
    for i, layer in enumerate(params):
        x = product(x, layer["w"], dtype) + layer["b"]
        if i == len(params) - 1:
            break
        if stats:
            x, new = batch_norm(x, layer, stats[i])
            updated.append(new)
        x = jax.nn.leaky_relu(x, slope)
        if dropout:
            key, use = jax.random.split(key)
            keep = jax.random.bernoulli(use, 1 - dropout, x.shape)
            x = jnp.where(keep, x * (1 / (1 - dropout)), 0)
    return x, updated


def product(x, w, dtype):
    if dtype == jnp.float32:
        return x @ w
    # Only the operands are rounded: on cpu, activations in bf16 cost more than they save.
    return jnp.dot(x.astype(dtype), w.astype(dtype), preferred_element_type=jnp.float32)


def batch_norm(x, layer, stats, momentum=0.1, eps=1e-5):
    mean, var = x.mean(0), x.var(0)
    out = (x - mean) * jax.lax.rsqrt(var + eps) * layer["scale"] + layer["shift"]
    n = x.shape[0]
    blend = functools.partial(jax.tree.map, lambda old, new: old + momentum * (new - old))
    fresh = {"mean": mean, "var": var * (n / max(n - 1, 1))}
    return out, jax.lax.stop_gradient(blend(stats, fresh))


def make_step(plan, precision: str):
    """step(data, state, index) -> (state, (d_loss, g_loss)), and the first state."""
    dtype = jnp.bfloat16 if precision == "bf16" else jnp.float32
    adam = optax.adam(plan.lr, b1=plan.betas[0], b2=plan.betas[1], eps=plan.eps)
    softplus = jax.nn.softplus

    def generate(params, stats, key):
        z = jax.random.normal(key, (plan.batch, plan.latent))
        x, stats = mlp(params, stats, z, slope=plan.slope, dropout=0, key=None, dtype=dtype)
        return jnp.tanh(x), stats

    def scores_of(params, stats, x, key):
        x, stats = mlp(
            params, stats, x, slope=plan.slope, dropout=plan.dropout, key=key, dtype=dtype
        )
        return x[:, 0], stats

    def step(data, state, index):
        g, d, g_stats, d_stats, g_moments, d_moments, key = state
        key, k1, k2, k3, k4, k5 = jax.random.split(key, 6)
        real = data[index]
        fake, g_stats = generate(g, g_stats, k1)

        def d_loss_of(d):
            on_real, stats = scores_of(d, d_stats, real, k2)
            on_fake, stats = scores_of(d, stats, fake, k3)
            return softplus(-on_real).mean() + softplus(on_fake).mean(), stats

        (d_loss, d_stats), grads = jax.value_and_grad(d_loss_of, has_aux=True)(d)
        updates, d_moments = adam.update(grads, d_moments)
        d = optax.apply_updates(d, updates)

        def g_loss_of(g):
            fake, g_new = generate(g, g_stats, k4)
            on_fake, d_new = scores_of(d, d_stats, fake, k5)
            return softplus(-on_fake).mean(), (g_new, d_new)

        (g_loss, (g_stats, d_stats)), grads = jax.value_and_grad(g_loss_of, has_aux=True)(g)
        updates, g_moments = adam.update(grads, g_moments)
        g = optax.apply_updates(g, updates)
        return (g, d, g_stats, d_stats, g_moments, d_moments, key), (d_loss, g_loss)

    key, k1, k2 = jax.random.split(jax.random.key(plan.seed), 3)
    g, g_stats = init_mlp(k1, plan.g_widths, plan.has_batchnorm("g"))
    d, d_stats = init_mlp(k2, plan.d_widths, plan.has_batchnorm("d"))
    return step, (g, d, g_stats, d_stats, adam.init(g), adam.init(d), key)


class Jax(Peer):
    """What the two ways of running share: data, order, state. Option ``precision``."""

    steps_a_call = 1

    @classmethod
    def available(cls, device="cpu"):
        if device == "cuda":
            try:
                jax.devices("gpu")
            except RuntimeError as error:
                return f"JAX has no GPU here: {error}"
        return None

    def setup(self, plan, threads):
        if plan.network != "mlp" or plan.penalty != "none":
            raise Unavailable("this peer is written for MLPs without a penalty")
        if self.device == "cuda":
            jax.config.update("jax_default_device", jax.devices("gpu")[0])
            precision = self.options.get("precision", "fp32")
            jax.config.update("jax_default_matmul_precision", PRODUCTS[precision])
        self.plan = plan
        self.granularity = self.steps_a_call = self.choose_steps(plan)
        step, self.state = make_step(plan, self.options.get("precision", "fp32"))
        pixels = jnp.asarray(plan.pixels())
        self.data = jax.block_until_ready(pixels.astype(jnp.float32) * (2 / 255) - 1)
        self.key = jax.random.key(plan.seed + 1)
        self.shuffle = jax.jit(
            lambda key: jax.random.permutation(key, plan.data_size).reshape(-1, plan.batch)
        )
        self.rows = jnp.concatenate([self.permutation(), self.permutation()])
        self.position = 0
        self.call = self.compile(step)
        self.run(self.granularity)

    def choose_steps(self, plan) -> int:
        return 1

    def permutation(self):
        self.key, use = jax.random.split(self.key)
        return self.shuffle(use)

    def run(self, n):
        epoch = self.plan.steps_per_epoch
        for _ in range(n // self.steps_a_call):
            self.state, self.latest = self.call(self.state, self.data, self.rows, self.position)
            self.position += self.steps_a_call
            if self.position >= epoch:
                # Two epochs of rows, so that a call may run over the end of the first.
                self.rows = jnp.concatenate([self.rows[epoch:], self.permutation()])
                self.position -= epoch
        jax.block_until_ready((self.state, self.latest))

    def losses(self):
        return tuple(loss.reshape(-1)[-1].item() for loss in self.latest)

    def describe(self):
        names = THREADS_FROM if self.device == "cpu" else ("XLA_FLAGS",)
        limits = ", ".join(f"{name}={os.environ.get(name)}" for name in names)
        return f"{jax.devices()[0]}; {self.steps_a_call} steps a call; {limits}"


class Jit(Jax):
    """One call of a jitted function a step."""

    def compile(self, step):
        @functools.partial(jax.jit, donate_argnums=0)
        def call(state, data, rows, position):
            return step(data, state, rows[position])

        return call


class Scan(Jax):
    """lax.scan over many steps in one call."""

    def choose_steps(self, plan):
        return plan.chunk if self.device == "cpu" else plan.chunk_on_gpu

    def compile(self, step):
        @functools.partial(jax.jit, donate_argnums=0)
        def call(state, data, rows, position):
            index = jax.lax.dynamic_slice_in_dim(rows, position, self.steps_a_call)
            return jax.lax.scan(functools.partial(step, data), state, index, unroll=UNROLL)

        return call
