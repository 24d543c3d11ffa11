"""Engine `compile` against `eager` on ten networks, with TorchInductor: minutes, so not a test.

    python tools/check_compile.py [--only NAME ...] [--record FILE.md]

For each: how far the first gradients of every update are from eager's (relative; 1e-5 is demanded;
where they are farther, also how far eager's own are from those in float64, which must be of that
size, and how far they are when both are computed in float64), what a step's losses and gradients
take in both (best of a few), how long compiling took, and how long a second process takes with the
code that the first has kept: from its start until it has trained three steps, until its end, and in
processor time, which other programs do not lengthen as much.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

MOST, EXACT = 1e-5, 1e-10


class Block(nn.Module):
    """Two convolutions beside nothing."""

    def __init__(self, width: int):
        super().__init__()
        sn = nn.utils.parametrizations.spectral_norm
        self.a, self.b = (sn(nn.Conv2d(width, width, 3, 1, 1)) for _ in range(2))

    def forward(self, x):
        return x + self.b(torch.relu(self.a(torch.relu(x))))


class Attends(nn.Module):
    """Rows of an image that look at each other."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.look = nn.LayerNorm(width), nn.Linear(width, 3 * width)

    def forward(self, x):
        q, k, v = self.look(self.norm(x)).chunk(3, -1)
        return x + torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v


def mlp_g(*middle):
    return nn.Sequential(
        nn.Linear(16, 64), *middle, nn.LeakyReLU(0.2), nn.Linear(64, 256), nn.Tanh(),
        nn.Unflatten(1, (1, 16, 16)),
    )  # fmt: skip


def mlp_d(*middle):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(256, 64), *middle, nn.LeakyReLU(0.2), nn.Linear(64, 1)
    )


def dcgan_g():
    return nn.Sequential(
        nn.Linear(16, 512), nn.Unflatten(1, (32, 4, 4)), nn.BatchNorm2d(32), nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip


def dcgan_d(norm=nn.BatchNorm2d):
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 4, 2, 1), norm(32),
        nn.LeakyReLU(0.2), nn.Conv2d(32, 1, 4),
    )  # fmt: skip


NETWORKS = {
    "mlp": lambda: (mlp_g(), mlp_d(), {}),
    "mlp, r1": lambda: (mlp_g(), mlp_d(nn.Tanh()), {"penalties": "r1"}),
    "mlp with BatchNorm, dropout": lambda: (
        mlp_g(nn.BatchNorm1d(64)), mlp_d(nn.Dropout(0.3)), {"loss": "least-squares"},
    ),
    "mlp, wgan-gp": lambda: (
        mlp_g(nn.BatchNorm1d(64)), mlp_d(nn.Dropout(0.3)),
        {"loss": "wasserstein", "penalties": "wgan-gp"},
    ),
    "dcgan": lambda: (dcgan_g(), dcgan_d(), {}),
    "dcgan, r1": lambda: (dcgan_g(), dcgan_d(), {"penalties": "r1"}),
    "dcgan with GroupNorm, wgan-gp": lambda: (
        dcgan_g(), dcgan_d(lambda n: nn.GroupNorm(4, n)),
        {"loss": "wasserstein", "penalties": "wgan-gp"},
    ),
    "sn-resnet": lambda: (
        dcgan_g(),
        nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), Block(16), nn.AvgPool2d(8), nn.Flatten(),
                      nn.Linear(16, 1)),
        {"loss": "hinge"},
    ),
    "relativistic, r1 and r2": lambda: (
        mlp_g(), mlp_d(nn.GELU()), {"loss": "relativistic", "penalties": ["r1", "r2"]},
    ),
    "attention, r1": lambda: (
        mlp_g(),
        nn.Sequential(nn.Flatten(1, 2), Attends(16), nn.Flatten(), nn.Linear(256, 1)),
        {"penalties": "r1"},
    ),
}  # fmt: skip


def problem(name: str, dtype=torch.float32):
    """One of them."""
    from fastgan import data
    from fastgan.problem import make_problem

    torch.manual_seed(0)
    g, d, options = NETWORKS[name]()
    samples = torch.rand(128, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return make_problem(
        g.to(dtype), d.to(dtype), data.open(samples), batch_size=64, latent_dim=16, device="cpu",
        seed=1, **options,
    )  # fmt: skip


def built(name: str):
    """The engine of one of them, and how long it took to make it."""
    from fastgan import engines

    p = problem(name)
    since = time.perf_counter()
    engine, said = engines.choose(p, "compile")
    return engine, said, time.perf_counter() - since


def in_float64(name: str, taken: bool) -> tuple[float, float]:
    """How far eager's first gradients are from those in float64, and in float64 compile's are.

    Args:
        name: the problem's.
        taken: whether its updates are recorded; in float64 they are then, too.
    """
    from fastgan.engines import agree, convolutions
    from fastgan.engines.compile import CompileEngine
    from fastgan.engines.compiled_step import CompiledStep

    compare, found = agree.compare, []

    def keep(what, precision, weights, outputs, states, otherwise=None):
        found[-1].append(outputs[0][:weights])
        return compare(what, precision, weights, outputs, states, otherwise)

    recorded, compiler = convolutions.Convolutions.taken, vars(CompiledStep)["compiler"]
    agree.compare = keep
    CompiledStep.compiler = staticmethod(lambda graph, inputs: graph)
    try:
        for dtype in (torch.float64, torch.float32):
            found.append([])
            CompileEngine(problem(name, dtype))
        found.append([])
        CompiledStep.compiler = compiler
        if taken:
            convolutions.Convolutions.taken = property(lambda self: True)
        engine = CompileEngine(problem(name, torch.float64))
    finally:
        agree.compare, CompiledStep.compiler = compare, compiler
        convolutions.Convolutions.taken = recorded
    rounding = max(agree.distance(*both, agree.SMALL) for both in zip(*found[:2], strict=True))
    return rounding, max(f.distance for f in engine._once.functions.values())


def one(name: str, since: float) -> dict:
    """What there is to say of one, in this process, which began at a time."""
    engine, said, seconds = built(name)
    once, found = engine._once, engine.run(3)
    ready, functions = time.time() - since, once.functions.values()
    off, before, after = max(f.distance for f in functions), *once.milliseconds(engine.step)
    taken = once._convolutions.taken
    return {
        "network": name, "off": off, "eager_ms": before, "ready": ready,
        "compiled_ms": after, "seconds": seconds, "kept": all(f.kept for f in functions) or taken,
        "finite": bool(torch.isfinite(found).all()), "said": said,
        "float64": in_float64(name, taken) if off > MOST else None,
    }  # fmt: skip


def apart(name: str, cache: str) -> tuple[dict, float, float]:
    """The same in a process of its own; seconds that it lived, by the clock and of processors."""
    since, before = time.perf_counter(), _children()
    done = subprocess.run(
        [sys.executable, __file__, "--child", name, str(time.time())],
        env={**os.environ, "XDG_CACHE_HOME": cache}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    seconds = time.perf_counter() - since, _children() - before
    return json.loads(done.stdout.splitlines()[-1]), *seconds


def _children() -> float:
    """Processor time of child processes that have ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Run it; 1 if a gradient is too far off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--record", type=Path, help="also write the table into this file")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, since = args.child
        print(json.dumps(one(name, float(since))))
        return 0
    lines = [
        f"torch {torch.__version__}, {torch.get_num_threads()} threads",
        "",
        "| network | gradients off by | eager, ms | compiled, ms | compiling, s | "
        "second run trains after, s | ends after, s | of processors, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    from fastgan.engines import agree

    wrong = 0
    with tempfile.TemporaryDirectory() as cache:
        for name in args.only:
            first, *_ = apart(name, cache)
            second, whole, used = apart(name, cache)
            own = ""
            good = first["off"] <= MOST
            if not good:
                rounding, exact = first["float64"]
                good = exact <= EXACT and first["off"] <= agree.WORSE * rounding
                own = f" (eager's own: {rounding:.1e}; in float64: {exact:.1e})"
            wrong += not (good and first["finite"] and second["kept"])
            lines.append(
                f"| {name} | {first['off']:.1e}{own} | {second['eager_ms']:.2f} | "
                f"{second['compiled_ms']:.2f} | {first['seconds']:.1f} | {second['ready']:.1f} | "
                f"{whole:.1f} | {used:.1f} |"
            )
            print(lines[-1], flush=True)
            if args.record:
                args.record.write_text("\n".join(lines) + "\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
