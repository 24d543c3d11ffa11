"""fastgan's own engines, through the interface that the trainer uses."""

from __future__ import annotations

from peers import Unavailable, networks
from peers.torchpeer import TorchPeer


class Engine(TorchPeer):
    """Options: ``engine``, an engine's name or "auto"; ``precision`` ("fp32", "tf32", "bf16");
    ``shared_fakes``, as the setting; ``program``: with "chain" the fused engine on CUDA leaves its
    persistent kernel aside."""

    @classmethod
    def available(cls, device="cpu"):
        if reason := super().available(device):
            return reason
        try:
            import fastgan.engines  # noqa: F401
        except Exception as error:
            return f"fastgan does not import: {error}"
        return None

    def setup(self, plan, threads):
        from fastgan import data, engines
        from fastgan.engines.fused.cuda import FusedCudaEngine
        from fastgan.problem import make_problem

        self.begin(threads)
        # On the CPU the engine finds the memory format itself.
        generator, discriminator = networks.build(
            plan,
            sigmoid=plan.penalty != "wgan-gp",
            device=self.device,
            channels_last=self.device == "cuda",
        )
        try:
            problem = make_problem(
                generator,
                discriminator,
                data.open(networks.images(plan)).to(self.device),
                batch_size=plan.batch,
                d_steps=plan.d_steps,
                shared_fakes=self.options.get("shared_fakes", False),
                latent_dim=plan.latent,
                lr=plan.lr,
                betas=plan.betas,
                eps=plan.eps,
                seed=plan.seed,
                precision="bf16" if self.options.get("precision") == "bf16" else "fp32",
                device=self.device,
                penalties=None if plan.penalty == "none" else plan.penalty,
                loss="wasserstein" if plan.penalty == "wgan-gp" else "non-saturating",
            )
            if self.device == "cuda":
                # Asked for when the engine lays out its memory; a process has one peer.
                FusedCudaEngine.allow_persistent = self.options.get("program") != "chain"
            self.engine, self.why = engines.choose(problem, self.options["engine"])
        except (ValueError, RuntimeError, KeyError, ImportError) as error:
            raise Unavailable(str(error)) from error

    def run(self, n):
        self.latest = self.engine.run(n)

    def losses(self):
        from fastgan.statistics import NAMES

        latest = dict(zip(NAMES, self.latest[-1].tolist(), strict=True))
        return latest["d_loss"], latest["g_loss"]

    def describe(self):
        return f"{self.engine.name}: {self.engine.describe()}"

    def profile(self, steps: int) -> list[tuple[str, float, float, float]]:
        """For each phase of a step: (name, operations, seconds at work, seconds waiting).

        On a GPU the persistent kernel tells its phases, of the others every kernel is one.
        """
        if self.device == "cuda" and not getattr(self.engine, "persistent", False):
            return super().profile(steps)
        if not hasattr(self.engine, "profile"):
            raise Unavailable(f"engine {self.engine.name!r} has no profile(steps)")
        return [tuple(row) for row in self.engine.profile(steps)]

    def close(self):
        if hasattr(self, "engine"):
            self.engine.close()
        super().close()
