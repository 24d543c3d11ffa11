"""Many small pairs trained by fastgan, through the interface that its users have.

A step is one step of one of the pairs; a block is a whole call of ``fit`` with all that belongs to
one: log lines, callbacks, threads that start and end. Nothing is written to disk.
"""

from __future__ import annotations

import torch
from plans import MEMBERS

from peers import Unavailable, networks
from peers.fastgan import Engine
from peers.torchpeer import TorchPeer

STEPS = 500
"""Of each pair in a call."""


class AtOnce(TorchPeer):
    """`fastgan.Ensemble`."""

    available = Engine.available

    def setup(self, plan, threads):
        import fastgan

        self.begin(threads)
        self.granularity = MEMBERS * STEPS
        self.steps = 0
        self.settings = {
            "batch_size": plan.batch, "latent_dim": plan.latent, "lr": plan.lr, "betas": plan.betas,
            "device": self.device, "console": "none", "engine": "fused",
        }  # fmt: skip
        self.data = fastgan.data.open(networks.images(plan))
        try:
            self.make(fastgan, plan)
        except (ValueError, RuntimeError) as error:
            raise Unavailable(str(error)) from error

    def make(self, fastgan, plan):
        self.ensemble = fastgan.Ensemble(
            lambda config: networks.build(plan, sigmoid=True), self.data, members=MEMBERS,
            **self.settings,
        )  # fmt: skip
        self.trainers = list(self.ensemble)

    def run(self, n):
        self.steps += n // MEMBERS
        self.train()

    def train(self):
        self.ensemble.fit(steps=self.steps)

    def losses(self):
        last = self.trainers[-1].history[-1]
        return last["d_loss"], last["g_loss"]

    def describe(self):
        engine = self.trainers[-1].engine
        return f"{len(self.trainers)} pairs, {torch.get_num_threads()} cores, {engine.describe()}"


class OneByOne(AtOnce):
    """`fastgan.Trainer`, one run after the other."""

    def make(self, fastgan, plan):
        self.trainers = [
            fastgan.Trainer(
                *networks.build(plan, sigmoid=True), self.data, seed=seed, **self.settings
            )
            for seed in range(MEMBERS)
        ]

    def train(self):
        for trainer in self.trainers:
            trainer.fit(steps=self.steps)
