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
from plans import GP_WEIGHT, R1_WEIGHT

from peers import Peer, Unavailable, jax_conv

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
    """step(data, state, index) -> (state, (d_loss, g_loss)), and begin(key) -> the first state.

    index: [d_steps, batch], the rows of D's batches.
    """
    dtype = jnp.bfloat16 if precision == "bf16" else jnp.float32
    adam = optax.adam(plan.lr, b1=plan.betas[0], b2=plan.betas[1], eps=plan.eps)
    softplus = jax.nn.softplus

    generate, scores_of, init = networks_of(plan, dtype)
    critic = plan.penalty == "wgan-gp"

    def slopes_of(d, stats, points, key):
        slope = jax.grad(lambda x: scores_of(d, stats, x, key)[0].sum())(points)
        return jnp.square(slope.reshape(len(slope), -1)).sum(1)

    def step(data, state, index):
        for row in index:
            state, d_loss = update_d(data, state, row)
        return update_g(state, d_loss)

    def update_d(data, state, row):
        g, d, g_stats, d_stats, g_moments, d_moments, key = state
        key, k1, k2, k3 = jax.random.split(key, 4)
        real = data[row]
        fake, g_stats = generate(g, g_stats, k1)

        def d_loss_of(d):
            on_real, stats = scores_of(d, d_stats, real, k2)
            on_fake, stats = scores_of(d, stats, fake, k3)
            if critic:
                eps = jax.random.uniform(k2, (plan.batch, *[1] * (real.ndim - 1)))
                points = fake + eps * (real - fake)
                norm = jnp.sqrt(slopes_of(d, stats, points, k3) + 1e-12)
                penalty = GP_WEIGHT * jnp.square(norm - 1).mean()
                return on_fake.mean() - on_real.mean() + penalty, stats
            if plan.penalty == "r1":
                penalty = R1_WEIGHT * slopes_of(d, d_stats, real, k2).mean()
                loss = softplus(-on_real).mean() + softplus(on_fake).mean()
                return loss + penalty, stats
            return softplus(-on_real).mean() + softplus(on_fake).mean(), stats

        (d_loss, d_stats), grads = jax.value_and_grad(d_loss_of, has_aux=True)(d)
        updates, d_moments = adam.update(grads, d_moments)
        d = optax.apply_updates(d, updates)
        return (g, d, g_stats, d_stats, g_moments, d_moments, key), d_loss

    def update_g(state, d_loss):
        g, d, g_stats, d_stats, g_moments, d_moments, key = state
        key, k4, k5 = jax.random.split(key, 3)

        def g_loss_of(g):
            fake, g_new = generate(g, g_stats, k4)
            on_fake, d_new = scores_of(d, d_stats, fake, k5)
            loss = -on_fake.mean() if critic else softplus(-on_fake).mean()
            return loss, (g_new, d_new)

        (g_loss, (g_stats, d_stats)), grads = jax.value_and_grad(g_loss_of, has_aux=True)(g)
        updates, g_moments = adam.update(grads, g_moments)
        g = optax.apply_updates(g, updates)
        return (g, d, g_stats, d_stats, g_moments, d_moments, key), (d_loss, g_loss)

    def begin(key):
        key, use = jax.random.split(key)
        g, g_stats, d, d_stats = init(use)
        return g, d, g_stats, d_stats, adam.init(g), adam.init(d), key

    return step, begin


def networks_of(plan, dtype):
    """generate(params, stats, key), scores_of(params, stats, images, key) and init(key)."""
    if plan.network != "mlp":
        pair = {"dcgan": jax_conv.Dcgan, "resnet": jax_conv.ResNet}[plan.network](plan)

        def generate(params, stats, key):
            return pair.generate(params, stats, jax.random.normal(key, (plan.batch, plan.latent)))

        return generate, lambda params, stats, x, _: pair.score(params, stats, x), pair.init

    def generate(params, stats, key):
        z = jax.random.normal(key, (plan.batch, plan.latent))
        x, stats = mlp(params, stats, z, slope=plan.slope, dropout=0, key=None, dtype=dtype)
        return jnp.tanh(x), stats

    def scores_of(params, stats, x, key):
        x, stats = mlp(
            params, stats, x, slope=plan.slope, dropout=plan.dropout, key=key, dtype=dtype
        )
        return x[:, 0], stats

    def init(key):
        k1, k2 = jax.random.split(key)
        g = init_mlp(k1, plan.g_widths, plan.has_batchnorm("g"))
        return *g, *init_mlp(k2, plan.d_widths, plan.has_batchnorm("d"))

    return generate, scores_of, init


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
        precision = self.options.get("precision", "fp32")
        if plan.network != "mlp" and precision == "bf16":
            raise Unavailable("this peer's convolutions are in float32")
        if self.device == "cuda":
            jax.config.update("jax_default_device", jax.devices("gpu")[0])
            jax.config.update("jax_default_matmul_precision", PRODUCTS[precision])
        self.plan = plan
        self.granularity = self.steps_a_call = self.choose_steps(plan)
        step, begin = make_step(plan, precision)
        self.state = begin(jax.random.key(plan.seed))
        pixels = jnp.asarray(plan.pixels())
        if plan.network != "mlp":
            pixels = pixels.reshape(-1, *plan.image).transpose(0, 2, 3, 1)
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
            self.position += self.steps_a_call * self.plan.d_steps
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
            return step(
                data, state, jax.lax.dynamic_slice_in_dim(rows, position, self.plan.d_steps)
            )

        return call


class Scan(Jax):
    """lax.scan over many steps in one call."""

    def choose_steps(self, plan):
        return plan.chunk if self.device == "cpu" else plan.chunk_on_gpu

    def compile(self, step):
        @functools.partial(jax.jit, donate_argnums=0)
        def call(state, data, rows, position):
            batches = self.steps_a_call * self.plan.d_steps
            index = jax.lax.dynamic_slice_in_dim(rows, position, batches)
            index = index.reshape(self.steps_a_call, self.plan.d_steps, -1)
            return jax.lax.scan(functools.partial(step, data), state, index, unroll=UNROLL)

        return call
