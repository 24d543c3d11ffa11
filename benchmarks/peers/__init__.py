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
import time


class Peer:
    """Base class: what the harness asks of a peer."""

    granularity = 1  # run(n) takes multiples of this

    def __init__(self, device: str = "cpu", **options):
        self.device = device
        self.options = options

    @classmethod
    def available(cls, device: str = "cpu") -> str | None:
        """Why this peer cannot run here, or None."""
        return None

    def setup(self, plan, threads: int) -> None:
        """Build networks, optimisers and data. Raise ``Unavailable`` for a plan it cannot run."""
        raise NotImplementedError

    def run(self, n: int) -> None:
        """Do n steps and return when they are done, or on a GPU when they are asked for."""
        raise NotImplementedError

    def block(self, n: int, calls: int = 1) -> float:
        """Seconds of that many calls of ``run(n)``, until the last step is done."""
        start = time.perf_counter()
        for _ in range(calls):
            self.run(n)
        return time.perf_counter() - start

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
        precision: of the matrix products, "fp32", "tf32" or "bf16".
        options: arguments of the class.
        env: environment of its process.
        grid: takes part in the grid by default (the others are slower twins, or for one question).
        alone: devices on which it is set up while nothing else runs, because it times candidates.
        devices: where it runs.
    """

    name: str
    where: str
    precision: str
    about: str
    options: dict = dataclasses.field(default_factory=dict)
    env: dict = dataclasses.field(default_factory=dict)
    grid: bool = True
    alone: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu", "cuda")

    @property
    def ours(self) -> bool:
        return self.where.startswith("fastgan:")

    @property
    def file(self) -> str:
        return self.where.partition(":")[0]

    def load(self, device: str = "cpu") -> Peer:
        """Create the peer; ``Unavailable`` with the reason if that is impossible."""
        module, _, name = self.where.partition(":")
        try:
            cls = getattr(importlib.import_module(f"peers.{module}"), name)
        except ImportError as error:
            raise Unavailable(str(error)) from None
        reason = cls.available(device)
        if reason:
            raise Unavailable(reason)
        return cls(device, **self.options)


# Inductor keeps what its autotuning chose, for ever: a choice made on a busy machine must not stay.
AUTOTUNE = {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}

# XLA drives a loop from the host, iteration by iteration, unless whole loops may become graphs.
LOOPS = {"XLA_FLAGS": "--xla_gpu_enable_command_buffer=+WHILE"}
TF32, BF16 = {"precision": "tf32"}, {"precision": "bf16"}
CPU, CUDA = ("cpu",), ("cuda",)


def _jax(*arguments, **options) -> Entry:
    """On a GPU, XLA chooses among kernels by timing them."""
    return Entry(*arguments, alone=CUDA, **options)


def _also_tf32(entry: Entry) -> tuple[Entry, Entry]:
    """The entry, and on a GPU its twin that may round the operands of products to tf32."""
    return entry, dataclasses.replace(
        entry,
        name=f"{entry.name}-tf32",
        precision="tf32",
        about=f"{entry.about}, products in tf32",
        options=entry.options | TF32,
        devices=CUDA,
    )


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
        *_also_tf32(
            Entry("eager", "eager:Eager", "fp32", "clean eager PyTorch, tensors in memory")
        ),
        Entry(
            "example",
            "example:Example",
            "fp32",
            "the public DCGAN example's loop, channels first, plain Adam",
            grid=False,
            devices=CPU,
        ),
        Entry(
            "eager-first",
            "eager:Eager",
            "fp32",
            "clean eager PyTorch, convolutions channels first",
            options={"channels_last": False},
            grid=False,
            devices=CPU,
        ),
        Entry(
            "compile",
            "compile:Compiled",
            "fp32",
            "the whole step in one torch.compile graph, default mode",
            grid=False,
        ),
        *_also_tf32(
            Entry(
                "compile-reduce",
                "compile:Compiled",
                "fp32",
                "the same, mode reduce-overhead: replayed as a CUDA graph",
                options={"mode": "reduce-overhead"},
                devices=CUDA,
            )
        ),
        *_also_tf32(
            Entry(
                "compile-max",
                "compile:Compiled",
                "fp32",
                "the same, mode max-autotune",
                options={"mode": "max-autotune"},
                env=AUTOTUNE,
                alone=("cpu", "cuda"),
            )
        ),
        Entry("amp", "amp:AmpEager", "bf16", "clean eager under bf16 autocast"),
        Entry(
            "amp-medium",
            "amp:Medium",
            "bf16",
            "clean eager, float32 tensors, products in bf16 (set_float32_matmul_precision)",
            devices=CPU,
        ),
        Entry(
            "amp-compile",
            "amp:AmpCompiled",
            "bf16",
            "whole-step torch.compile, bf16 autocast",
            grid=False,
        ),
        Entry(
            "amp-compile-reduce",
            "amp:AmpCompiled",
            "bf16",
            "the same, mode reduce-overhead",
            options={"mode": "reduce-overhead"},
            devices=CUDA,
        ),
        Entry(
            "amp-compile-max",
            "amp:AmpCompiled",
            "bf16",
            "the same, mode max-autotune",
            options={"mode": "max-autotune"},
            env=AUTOTUNE,
            alone=("cpu", "cuda"),
        ),
        _jax("jax-jit", "jax:Jit", "fp32", "JAX, one jitted call a step", grid=False),
        *_also_tf32(_jax("jax-scan", "jax:Scan", "fp32", "JAX, lax.scan over many steps")),
        *_also_tf32(
            _jax(
                "jax-scan-graph",
                "jax:Scan",
                "fp32",
                "JAX, lax.scan over many steps, XLA told to make a CUDA graph of the loop",
                env=LOOPS,
                devices=CUDA,
            )
        ),
        _jax(
            "jax-jit-bf16",
            "jax:Jit",
            "bf16",
            "JAX, one jitted call a step, bf16 products",
            options=BF16,
            grid=False,
        ),
        _jax(
            "jax-scan-bf16",
            "jax:Scan",
            "bf16",
            "JAX, lax.scan over many steps, bf16 products",
            options=BF16,
        ),
        _jax(
            "jax-scan-graph-bf16",
            "jax:Scan",
            "bf16",
            "JAX, the scan as a CUDA graph, bf16 products",
            options=BF16,
            env=LOOPS,
            devices=CUDA,
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
            options={"engine": "eager"} | BF16,
            grid=False,
        ),
        *_also_tf32(
            Entry(
                "auto",
                "fastgan:Engine",
                "fp32",
                "fastgan, the engine that auto takes",
                options={"engine": "auto"},
                devices=CUDA,
            )
        ),
        Entry(
            "auto-bf16",
            "fastgan:Engine",
            "bf16",
            "fastgan, the engine that auto takes, bf16",
            options={"engine": "auto"} | BF16,
            devices=CUDA,
        ),
        *_also_tf32(
            Entry(
                "graph",
                "fastgan:Engine",
                "fp32",
                "fastgan, engine graph",
                options={"engine": "graph"},
                devices=CUDA,
            )
        ),
        Entry(
            "graph-bf16",
            "fastgan:Engine",
            "bf16",
            "fastgan, engine graph, bf16 autocast",
            options={"engine": "graph"} | BF16,
            devices=CUDA,
        ),
        Entry(
            "fastgan-compile",
            "fastgan:Engine",
            "fp32",
            "fastgan, engine compile: compiled or recorded updates, on a GPU in a replayed step",
            options={"engine": "compile"},
        ),
        Entry(
            "fastgan-compile-shared",
            "fastgan:Engine",
            "fp32",
            "the same, one fake batch for both updates, as `example` has it",
            options={"engine": "compile", "shared_fakes": True},
            grid=False,
            devices=CPU,
        ),
        Entry(
            "fastgan-compile-bf16",
            "fastgan:Engine",
            "bf16",
            "fastgan, engine compile: compiled updates inside a replayed step, bf16 autocast",
            options={"engine": "compile"} | BF16,
            devices=CUDA,
        ),
        *_also_tf32(
            Entry(
                "fused",
                "fastgan:Engine",
                "fp32",
                "fastgan, engine fused",
                options={"engine": "fused"},
            )
        ),
        Entry(
            "fused-bf16",
            "fastgan:Engine",
            "bf16",
            "fastgan, engine fused, bf16 products, fp32 master weights",
            options={"engine": "fused"} | BF16,
        ),
        *_also_tf32(
            Entry(
                "fused-chain",
                "fastgan:Engine",
                "fp32",
                "fastgan, engine fused, held to a kernel a phase",
                options={"engine": "fused", "program": "chain"},
                devices=CUDA,
            )
        ),
        Entry(
            "fused-chain-bf16",
            "fastgan:Engine",
            "bf16",
            "fastgan, engine fused, held to a kernel a phase, bf16 products",
            options={"engine": "fused", "program": "chain"} | BF16,
            devices=CUDA,
        ),
        Entry(
            "fused-avx2",
            "fastgan:Engine",
            "fp32",
            "fastgan, engine fused, held to AVX2 while the others keep what the cpu has",
            options={"engine": "fused"},
            env={"FASTGAN_ISA": "avx2"},
            grid=False,
            devices=CPU,
        ),
    )
}


MANY = {
    entry.name: entry
    for entry in (
        Entry("at-once", "many:AtOnce", "fp32", "fastgan, an ensemble: a thread for each core"),
        Entry(
            "one-by-one",
            "many:OneByOne",
            "fp32",
            "fastgan, the same runs one after the other, each on all cores",
        ),
        Entry("jax-vmap", "many_jax:Vmap", "fp32", "JAX, vmap of lax.scan over many steps"),
    )
}
"""Those of a race of many pairs; a step is one step of one pair."""

CONV = (
    "example,eager-first,eager,compile,jax-jit,jax-scan,fastgan-eager,fastgan-compile,"
    "fastgan-compile-shared"
)
"""Those of a race of convolutions."""


def select(text: str | None, *, grid: bool = False, device: str = "cpu") -> list[Entry]:
    """The peers of a comma-separated list of names or files; all (or the grid's) when not given.

    Only those that run on the device; a name of another device's is an error.
    """
    here = [entry for entry in CATALOGUE.values() if device in entry.devices]
    if not text:
        return [entry for entry in here if entry.grid or not grid]
    out = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        found = [e for e in here if word == e.name] or [e for e in here if e.file == word]
        if not found and word in CATALOGUE:
            raise ValueError(f"--peers: {word} does not run with --device {device}")
        if not found:
            files = sorted({e.file for e in here})
            names = ", ".join(e.name for e in here)
            raise ValueError(
                f"--peers: no peer or file is called {word!r}; "
                f"peers: {names}; files: {', '.join(files)}"
            )
        out += [entry for entry in found if entry not in out]
    return out
