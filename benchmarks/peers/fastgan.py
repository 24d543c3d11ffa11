"""fastgan's own engines, through the interface that the trainer uses."""

from __future__ import annotations

import torch

from peers import Peer, Unavailable, networks


class Engine(Peer):
    """Options: ``engine`` ("eager", "fused"), ``precision`` ("fp32", "bf16")."""

    @classmethod
    def available(cls):
        try:
            import fastgan.engines  # noqa: F401
        except Exception as error:
            return f"fastgan does not import: {error}"
        return None

    def setup(self, plan, threads):
        from fastgan import data, engines, losses, optim

        torch.set_num_threads(threads)
        generator, discriminator = networks.build(plan, sigmoid=True)
        adam = {"lr": plan.lr, "betas": plan.betas, "eps": plan.eps}
        try:
            problem = engines.Problem(
                generator=generator,
                discriminator=discriminator,
                game=losses.game("non-saturating"),
                optimizer_g=optim.Adam(generator.parameters(), **adam),
                optimizer_d=optim.Adam(discriminator.parameters(), **adam),
                data=data.open(networks.images(plan)),
                batch_size=plan.batch,
                latent_dim=plan.latent,
                seed=plan.seed,
                precision=self.options.get("precision", "fp32"),
                device=torch.device("cpu"),
            )
            self.engine, self.why = engines.choose(problem, self.options["engine"])
        except (ValueError, RuntimeError, KeyError, ImportError) as error:
            raise Unavailable(str(error)) from error

    def run(self, n):
        self.latest = self.engine.run(n)

    def losses(self):
        return tuple(self.latest[-1].tolist())

    def describe(self):
        return self.engine.describe()

    def profile(self, steps: int) -> list[tuple[str, float, float, float]]:
        """For each phase of a step: (name, operations, seconds at work, seconds waiting)."""
        if not hasattr(self.engine, "profile"):
            raise Unavailable(f"engine {self.engine.name!r} has no profile(steps)")
        return [tuple(row) for row in self.engine.profile(steps)]

    def close(self):
        if hasattr(self, "engine"):
            self.engine.close()
