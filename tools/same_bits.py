"""Does a change leave every number as it was? Trains the same pairs before and after it.

    python tools/same_bits.py --write before.json     # at the commit before
    python tools/same_bits.py --compare before.json   # at the commit after, on the same machine
    python tools/same_bits.py --compare before.json --measured   # does measuring move a bit?

Five pairs of MLPs and two of convolutions, fp32, 200 steps each in calls of several lengths, with
every engine that takes them on the CPU and with 1 and 2 threads. What is kept of a run are sha256
sums of its weights (buffers included), the optimisers' moments, the running average and the losses
of all steps: equal sums are equal bits. Bits depend on the processor, on the instruction set in use
and on torch, so the file says with what it was made, and a comparison across two of them is
refused. About two minutes on two idle cores.

The exit status is 0 if all is equal, 1 if something differs or is missing, 2 if the two cannot be
compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))
# Beside other processes a team that spins while it waits takes ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn

from fastgan import data, engines, models, ops
from fastgan.problem import make_problem

STEPS = 200
THREADS = (1, 2)
ENGINES = ("eager", "fused")
IMAGE = (1, 6, 6)
LATENT = 7
PARTS = ("weights", "moments", "average", "losses")


@dataclasses.dataclass(frozen=True)
class Pair:
    """A generator, a discriminator and how they are trained.

    Attributes:
        build: makes the two networks; torch's seed is set before.
        images: the data set, uint8 of this shape [N, C, H, W].
        settings: of `make_problem`.
        changes: engines whose numbers a change under way is meant to alter, with the reason. Such
            differences are told and do not count.
    """

    build: Callable[[], tuple[nn.Module, nn.Module]]
    images: tuple[int, int, int, int]
    settings: dict
    changes: dict[str, str] = dataclasses.field(default_factory=dict)


def mlp(
    g_hidden: Sequence[int],
    d_hidden: Sequence[int],
    *,
    activation: Callable[[], nn.Module] = lambda: nn.LeakyReLU(0.2),
    norm: str = "",
    dropout: float = 0.0,
    sigmoid: bool = True,
) -> tuple[nn.Module, nn.Module]:
    """Hidden layers of those widths; BatchNorm1d in the networks that norm names ("g", "d")."""
    pixels = math.prod(IMAGE)
    generator = _layers([LATENT, *g_hidden, pixels], activation, "g" in norm, 0.0)
    discriminator = _layers([pixels, *d_hidden, 1], activation, "d" in norm, dropout)
    return (
        nn.Sequential(*generator, nn.Tanh(), nn.Unflatten(1, IMAGE)),
        nn.Sequential(nn.Flatten(), *discriminator, *[nn.Sigmoid()] * sigmoid),
    )


def _layers(
    widths: Sequence[int], activation: Callable[[], nn.Module], norm: bool, dropout: float
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(before, after), *[nn.BatchNorm1d(after)] * norm, activation()]
        layers += [nn.Dropout(dropout)] * bool(dropout)
    return [*layers, nn.Linear(*widths[-2:])]


def dcgan() -> tuple[nn.Module, nn.Module]:
    """The convolutional pair, 32 x 32, four feature maps next to the image."""
    return models.DCGANGenerator(9, 32, 3, 4), models.DCGANDiscriminator(32, 3, 4)


def falling(step: int) -> float:
    """A schedule of the learning rates."""
    return 1 / (1 + step / 50)


PAIRS = {
    "dropout": Pair(
        lambda: mlp([32], [24], dropout=0.3),
        (203, *IMAGE),
        {"batch_size": 16, "latent_dim": LATENT, "ema": 0.95},
    ),
    "batchnorm": Pair(
        lambda: mlp([20, 28], [20, 12], norm="gd", activation=nn.ReLU),
        (150, *IMAGE),
        {"batch_size": 12, "latent_dim": LATENT, "d_steps": 2, "seed": 3},
    ),
    "hinge": Pair(
        lambda: mlp([17, 33, 9], [33, 17, 9], sigmoid=False, dropout=0.1, activation=nn.ReLU),
        (100, *IMAGE),
        {"batch_size": 32, "latent_dim": LATENT, "loss": "hinge", "lr": (1e-3, 5e-4)},
    ),
    "smoothed": Pair(
        lambda: mlp([40], [], norm="g"),
        (97, *IMAGE),
        {
            "batch_size": 9,
            "latent_dim": LATENT,
            "loss": "minimax",
            "label_smoothing": 0.1,
            "lr_schedule": falling,
            "ema": 0.9,
        },
    ),
    "deep": Pair(
        lambda: mlp([16, 16, 24, 8], [24, 8, 16, 8], activation=nn.Tanh, norm="g", sigmoid=False),
        (133, *IMAGE),
        {
            "batch_size": 10,
            "latent_dim": LATENT,
            "loss": "least-squares",
            "optimizer": "adamw",
            "weight_decay": 0.01,
            "betas": (0.3, 0.9),
            "eps": 1e-7,
            "d_steps": 3,
            "seed": 2**40 + 1,
        },
    ),
    "dcgan": Pair(dcgan, (45, 3, 32, 32), {"batch_size": 8, "latent_dim": 9, "ema": 0.9}),
    "dcgan-r1": Pair(
        dcgan,
        (40, 3, 32, 32),
        {"batch_size": 8, "latent_dim": (9, 1, 1), "penalties": "r1", "d_steps": 2},
    ),
    "elu": Pair(
        lambda: mlp([24, 16], [16, 24], activation=nn.ELU, dropout=0.2),
        (90, *IMAGE),
        {"batch_size": 16, "latent_dim": LATENT},
        {"fused": "its ELU lost the small values"},
    ),
}


def train(
    pair: Pair, engine_name: str, threads: int, steps: int, measured: bool = False
) -> dict[str, str] | None:
    """The sums of one run; None if the engine does not take the pair.

    Measured: the last step of each call is, as that of a log line.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(11)
    networks = pair.build()
    pixels = torch.randint(0, 256, pair.images, dtype=torch.uint8)
    problem = make_problem(*networks, data.open(pixels), device="cpu", **pair.settings)
    if engines.load(engine_name).unsupported(problem):
        return None
    engine, _ = engines.choose(problem, engine_name)
    losses, engine.measuring = [], measured
    for until in (steps // 200 or 1, steps // 4, steps):
        if until > engine.step:
            losses.append(engine.run(until - engine.step)[:, :2])
    engine.close()
    kept = {
        "weights": [t for network in networks for t in network.state_dict().values()],
        "moments": [
            state[name]
            for optimizer in (problem.optimizer_g, problem.optimizer_d)
            for _, state in sorted(optimizer.state_dict()["state"].items())
            for name in ("step", "exp_avg", "exp_avg_sq")
        ],
        "average": [] if problem.ema is None else list(problem.ema.state_dict().values()),
        "losses": losses,
    }
    return {part: digest(tensors) for part, tensors in kept.items()}


def digest(tensors: Iterable[Tensor]) -> str:
    """A sum over the bytes, shapes and types of tensors."""
    out = hashlib.sha256()
    for t in tensors:
        t = torch.as_tensor(t).detach().cpu().contiguous()
        out.update(f"{t.dtype} {list(t.shape)}\n".encode())
        out.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return out.hexdigest()


def machine() -> dict[str, str]:
    """What bits depend on besides the source."""
    return {
        "processor": next(
            (
                line.partition(":")[2].strip()
                for line in _lines(Path("/proc/cpuinfo"))
                if line.startswith("model name")
            ),
            platform.processor() or platform.machine(),
        ),
        "instruction_set": str(ops.isa()),
        "torch": torch.__version__,
    }


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def measure(
    names: Iterable[str], steps: int, say=lambda text: None, *, measured: bool = False
) -> dict:
    """All runs: {"machine", "steps", "runs": {pair: {"engine, threads": sums or None}}}."""
    before = torch.get_num_threads()
    runs: dict[str, dict] = {}
    try:
        for name in names:
            runs[name] = {}
            for engine in ENGINES:
                for threads in THREADS:
                    sums = train(PAIRS[name], engine, threads, steps, measured)
                    runs[name][f"{engine}, {threads}"] = sums
                    short = "not taken" if sums is None else sums["weights"][:12]
                    say(f"{name}: {engine}, {threads}: {short}")
    finally:
        torch.set_num_threads(before)
    return {"machine": machine(), "steps": steps, "runs": runs}


def differences(before: dict, after: dict) -> tuple[list[str], list[str]]:
    """What differs, in sentences: what must not, and what was meant to.

    Raises:
        ValueError: the two were made in ways that cannot be compared; the text says how.
    """
    for key in ("machine", "steps"):
        if before[key] != after[key]:
            raise ValueError(f"{key} was {before[key]} before and is {after[key]} now")
    wrong, meant = [], []
    for name, run in after["runs"].items():
        if name not in before["runs"]:
            raise ValueError(f"the earlier file has no run of the pair {name!r}")
        for how, now in run.items():
            then = before["runs"][name][how]
            if now == then:
                continue
            if then is None or now is None:
                said = f"{name}: {how}: {'not ' * (now is None)}taken now, but not before"
                said = said if then is None else f"{name}: {how}: was taken before, and is not now"
            else:
                other = ", ".join(part for part in PARTS if now[part] != then[part])
                said = f"{name}: {how}: other {other}"
            reason = PAIRS[name].changes.get(how.partition(",")[0])
            (meant if reason else wrong).append(f"{said} ({reason})" if reason else said)
    return wrong, meant


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", metavar="FILE", type=Path, help="write the sums there")
    what.add_argument("--compare", metavar="FILE", type=Path, help="compare with sums of before")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help="of every run (default %(default)s)"
    )
    parser.add_argument(
        "--pairs", default=",".join(PAIRS), help="comma-separated (default %(default)s)"
    )
    parser.add_argument(
        "--measured", action="store_true", help="measure the last step of each call"
    )
    options = parser.parse_args(argv)
    names = [name for name in options.pairs.split(",") if name]
    if unknown := [name for name in names if name not in PAIRS]:
        parser.error(f"--pairs: {unknown[0]!r} is none of {', '.join(PAIRS)}")
    if options.steps < 1:
        parser.error(f"--steps {options.steps}: expected at least 1")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    result = measure(names, options.steps, say, measured=options.measured)
    if options.write:
        options.write.write_text(json.dumps(result, indent=1) + "\n")
        return 0
    try:
        wrong, meant = differences(json.loads(options.compare.read_text()), result)
    except ValueError as reason:
        print(f"cannot be compared: {reason}", file=sys.stderr)
        return 2
    for said in meant:
        print(f"as intended: {said}")
    for said in wrong:
        print(f"DIFFERS: {said}")
    runs = [sums for run in result["runs"].values() for sums in run.values() if sums]
    print(f"{len(runs) - len(wrong) - len(meant)} of {len(runs)} runs are equal bit for bit")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
