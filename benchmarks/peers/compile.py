"""torch.compile at its best: the whole alternating step in one graph.

Forward, backward, both Adam updates, the batch gather and the noise are traced together (Dynamo
follows torch.autograd.grad when ``trace_autograd_ops`` is set), so Inductor fuses across all of it
and one call of Python drives a step. Compiling the two losses alone and keeping eager Adam was
slower than not compiling at all (see the README's dated notes).
"""

from __future__ import annotations

import contextlib
import os

import torch
from torch._dynamo.utils import counters
from torch.utils._triton import has_triton

from peers import eager, networks
from peers.torchpeer import TorchPeer


class Compiled(TorchPeer):
    """One compiled call a step. Option ``mode``: as in torch.compile."""

    @classmethod
    def available(cls, device="cpu"):
        if reason := super().available(device):
            return reason
        if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
            return f"torch {torch.__version__} cannot trace autograd.grad inside torch.compile"
        from torch._inductor import cpp_builder

        try:
            cpp_builder.get_cpp_compiler()
        except Exception:
            return "torch.compile needs a C++ compiler, and none was found"
        if device == "cuda" and not has_triton():
            return "torch.compile needs Triton on a GPU, and it does not work here"
        return None

    def setup(self, plan, threads):
        self.begin(threads)
        torch._dynamo.config.trace_autograd_ops = True
        torch._dynamo.reset()
        self.generator, self.discriminator = networks.build(plan, device=self.device)
        self.data = networks.normalised(plan, self.device)
        self.order = networks.Order(plan, self.device)
        self.d_steps = plan.d_steps
        g_adam = Adam(self.generator.parameters(), plan)
        d_adam = Adam(self.discriminator.parameters(), plan)
        d_loss_of, g_loss_of = eager.losses_of(
            plan, self.generator, self.discriminator, self.autocast, self.device
        )
        if self.device == "cuda":
            # What a replayed graph finds at a fixed address it need not copy in every step.
            networks_own = [
                t
                for network in (self.generator, self.discriminator)
                for t in (*network.parameters(), *network.buffers())
            ]
            for kept in (self.data, *networks_own, *g_adam.state(), *d_adam.state()):
                torch._dynamo.mark_static_address(kept)

        def step(data, indices):
            for index in indices:
                d_loss = d_loss_of(networks.take(data, index))
                d_adam.update(torch.autograd.grad(d_loss, d_adam.params))
            g_loss = g_loss_of()
            g_adam.update(torch.autograd.grad(g_loss, g_adam.params))
            return d_loss.detach(), g_loss.detach()

        self.step = torch.compile(
            step, fullgraph=True, dynamic=False, mode=self.options.get("mode")
        )
        with _quiet():
            for _ in range(5):  # a graph is recorded at the third call
                self.run(1)

    def run(self, n):
        for _ in range(n):
            indices = [self.order.next() for _ in range(self.d_steps)]
            self.latest = self.step(self.data, indices)

    def losses(self):
        return tuple(loss.item() for loss in self.latest)

    def describe(self):
        mode = self.options.get("mode", "default")
        if self.device != "cuda" or mode == "default":
            return f"mode {mode}"
        skipped = counters["inductor"]["cudagraph_skips"]
        return f"mode {mode}, {f'{skipped} graphs NOT replayed' if skipped else 'as a CUDA graph'}"


class Adam:
    """Adam in plain tensor operations, for the compiler to fuse; the step count is a tensor so that
    it does not recompile."""

    def __init__(self, params, plan):
        self.params = list(params)
        self.plan = plan
        self.m = [torch.zeros_like(p) for p in self.params]
        self.v = [torch.zeros_like(p) for p in self.params]
        self.t = torch.zeros((), device=self.params[0].device)

    def state(self) -> list[torch.Tensor]:
        return [self.t, *self.m, *self.v]

    @torch.no_grad()
    def update(self, grads):
        beta1, beta2 = self.plan.betas
        self.t.add_(1)
        rate = self.plan.lr / (1 - beta1**self.t)
        correction = (1 - beta2**self.t).rsqrt()
        for p, g, m, v in zip(self.params, grads, self.m, self.v, strict=True):
            m.lerp_(g, 1 - beta1)
            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            p.sub_(rate * m / (v.sqrt() * correction + self.plan.eps))


@contextlib.contextmanager
def _quiet():
    # max-autotune prints its candidates straight to stderr.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield
