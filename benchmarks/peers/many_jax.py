"""Many small pairs in JAX: the scan of peers/jax.py, mapped over pairs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from plans import MEMBERS

from peers.jax import UNROLL, Jax, make_step


class Vmap(Jax):
    """vmap of lax.scan: each pair has its own weights, moments, keys and order of the data."""

    def setup(self, plan, threads):
        self.plan = plan
        self.chunk = plan.chunk
        self.granularity = MEMBERS * self.chunk
        step, begin = make_step(plan, "fp32")
        keys = jax.random.split(jax.random.key(plan.seed), MEMBERS)
        self.state = jax.jit(jax.vmap(begin))(keys)
        pixels = jnp.asarray(plan.pixels()).astype(jnp.float32) * (2 / 255) - 1
        self.data = jax.block_until_ready(pixels)
        self.keys = jax.random.split(jax.random.key(plan.seed + 1), MEMBERS)
        self.shuffle = jax.jit(
            jax.vmap(
                lambda key: jax.random.permutation(key, plan.data_size).reshape(-1, plan.batch)
            )
        )
        self.rows = jnp.concatenate([self.permutation(), self.permutation()], 1)
        self.position = 0

        @functools.partial(jax.jit, donate_argnums=0)
        def call(state, data, rows, position):
            index = jax.lax.dynamic_slice_in_dim(rows, position, self.chunk, 1)
            scan = functools.partial(jax.lax.scan, functools.partial(step, data), unroll=UNROLL)
            return jax.vmap(scan)(state, index[:, :, None])

        self.call = call
        self.run(self.granularity)

    def permutation(self):
        keys = jax.vmap(jax.random.split)(self.keys)
        self.keys = keys[:, 0]
        return self.shuffle(keys[:, 1])

    def run(self, n):
        epoch = self.plan.steps_per_epoch
        for _ in range(n // self.granularity):
            self.state, self.latest = self.call(self.state, self.data, self.rows, self.position)
            self.position += self.chunk
            if self.position >= epoch:
                # Two epochs of rows, so that a call may run over the end of the first.
                self.rows = jnp.concatenate([self.rows[:, epoch:], self.permutation()], 1)
                self.position -= epoch
        jax.block_until_ready((self.state, self.latest))

    def describe(self):
        return f"{MEMBERS} pairs; {self.chunk} steps a call; {jax.devices()[0]}"
