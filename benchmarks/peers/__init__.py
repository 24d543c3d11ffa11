"""The programs that are compared: one file each, one class for each way of running it.

A peer is a class with this face (``Peer`` below). It is created in a process of its own, after the
number of threads and the cpus of that process are set. It must do the whole of the work inside
``run``: fetch its own batch in a fresh random order every epoch, draw its latents and dropout
masks, update D, update G; all of it as its own best users would write it.
"""

from __future__ import annotations

import dataclasses
import importlib
import math


class Peer:
    """Base class: what the harness asks of a peer."""

    granularity = 1  # run(n) takes multiples of this

    def __init__(self, **options):
        self.options = options

    @classmethod
    def available(cls) -> str | None:
        """Why this peer cannot run here, or None."""
        return None

    def setup(self, plan, threads: int) -> None:
        """Build networks, optimisers and data. Raise ``Unavailable`` for a plan it cannot run."""
        raise NotImplementedError

    def run(self, n: int) -> None:
        """Do n steps and return when they are done."""
        raise NotImplementedError

    def losses(self) -> tuple[float, float]:
        """D's and G's loss of the latest step."""
        raise NotImplementedError

    def describe(self) -> str:
        """A line on the path taken, for the record."""
        return ""

    def check(self) -> tuple[float, float]:
        """The latest losses; an error if they are not finite."""
        losses = tuple(float(x) for x in self.losses())
        if not all(map(math.isfinite, losses)):
            raise FloatingPointError(f"losses are {losses}")
        return losses


class Unavailable(Exception):
    """This peer cannot run this plan here; the text says why."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A peer by name.

    Attributes:
        where: "file:Class" in this folder.
        precision: of the matrix products, "fp32" or "bf16".
        options: arguments of the class.
        env: environment of its process.
        grid: takes part in the grid by default (the others are slower twins, or for one question).
        alone: is set up while nothing else runs, because it times candidates meanwhile.
    """

    name: str
    where: str
    precision: str
    about: str
    options: dict = dataclasses.field(default_factory=dict)
    env: dict = dataclasses.field(default_factory=dict)
    grid: bool = True
    alone: bool = False

    @property
    def ours(self) -> bool:
        return self.where.startswith("fastgan:")

    @property
    def file(self) -> str:
        return self.where.partition(":")[0]

    def load(self) -> Peer:
        """Create the peer; ``Unavailable`` with the reason if that is impossible."""
        module, _, name = self.where.partition(":")
        try:
            cls = getattr(importlib.import_module(f"peers.{module}"), name)
        except ImportError as error:
            raise Unavailable(str(error)) from None
        reason = cls.available()
        if reason:
            raise Unavailable(reason)
        return cls(**self.options)


# Inductor keeps what its autotuning chose, for ever: a choice made on a busy machine must not stay.
AUTOTUNE = {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}

CATALOGUE = {
    entry.name: entry
    for entry in (
        Entry(
            "reference",
            "reference:Reference",
            "fp32",
            "the beginner's program: DataLoader, BCELoss, no detach, plain Adam",
            grid=False,
        ),
        Entry("eager", "eager:Eager", "fp32", "clean eager PyTorch, tensors in memory"),
        Entry(
            "compile",
            "compile:Compiled",
            "fp32",
            "the whole step in one torch.compile graph, default mode",
            grid=False,
        ),
        Entry(
            "compile-max",
            "compile:Compiled",
            "fp32",
            "the same, mode max-autotune",
            options={"mode": "max-autotune"},
            env=AUTOTUNE,
            alone=True,
        ),
        Entry("amp", "amp:AmpEager", "bf16", "clean eager under bf16 autocast"),
        Entry(
            "amp-medium",
            "amp:Medium",
            "bf16",
            "clean eager, float32 tensors, products in bf16 (set_float32_matmul_precision)",
        ),
        Entry(
            "amp-compile",
            "amp:AmpCompiled",
            "bf16",
            "whole-step torch.compile, bf16 autocast",
            grid=False,
        ),
        Entry(
            "amp-compile-max",
            "amp:AmpCompiled",
            "bf16",
            "the same, mode max-autotune",
            options={"mode": "max-autotune"},
            env=AUTOTUNE,
            alone=True,
        ),
        Entry("jax-jit", "jax:Jit", "fp32", "JAX, one jitted call a step", grid=False),
        Entry("jax-scan", "jax:Scan", "fp32", "JAX, lax.scan over many steps"),
        Entry(
            "jax-jit-bf16",
            "jax:Jit",
            "bf16",
            "JAX, one jitted call a step, bf16 products",
            options={"precision": "bf16"},
            grid=False,
        ),
        Entry(
            "jax-scan-bf16",
            "jax:Scan",
            "bf16",
            "JAX, lax.scan over many steps, bf16 products",
            options={"precision": "bf16"},
        ),
        Entry(
            "fastgan-eager",
            "fastgan:Engine",
            "fp32",
            "fastgan, engine eager",
            options={"engine": "eager"},
        ),
        Entry(
            "fastgan-eager-bf16",
            "fastgan:Engine",
            "bf16",
            "fastgan, engine eager, bf16",
            options={"engine": "eager", "precision": "bf16"},
            grid=False,
        ),
        Entry(
            "fused",
            "fastgan:Engine",
            "fp32",
            "fastgan, engine fused",
            options={"engine": "fused"},
        ),
        Entry(
            "fused-bf16",
            "fastgan:Engine",
            "bf16",
            "fastgan, engine fused, bf16 products, fp32 master weights",
            options={"engine": "fused", "precision": "bf16"},
        ),
        Entry(
            "fused-avx2",
            "fastgan:Engine",
            "fp32",
            "fastgan, engine fused, held to AVX2 while the others keep what the cpu has",
            options={"engine": "fused"},
            env={"FASTGAN_ISA": "avx2"},
            grid=False,
        ),
    )
}


def select(text: str | None, *, grid: bool = False) -> list[Entry]:
    """The peers of a comma-separated list of names or files; all (or the grid's) when not given."""
    if not text:
        return [entry for entry in CATALOGUE.values() if entry.grid or not grid]
    out = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        found = [e for e in CATALOGUE.values() if word in (e.name,)] or [
            e for e in CATALOGUE.values() if e.file == word
        ]
        if not found:
            files = sorted({e.file for e in CATALOGUE.values()})
            raise ValueError(
                f"--peers: no peer or file is called {word!r}; "
                f"peers: {', '.join(CATALOGUE)}; files: {', '.join(files)}"
            )
        out += [entry for entry in found if entry not in out]
    return out
