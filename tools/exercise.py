"""Every CUDA kernel of fastgan a few times on small, odd shapes: what compute-sanitizer looks at.

    compute-sanitizer --tool racecheck python tools/exercise.py chain
    python tools/exercise.py operators --device cpu     # the same without a GPU

The values are not looked at, beyond being finite: the tests do that.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent), str(HERE.parent / "benchmarks")]

import torch  # noqa: E402
from peers import CATALOGUE, Unavailable  # noqa: E402
from plans import Plan  # noqa: E402
from torch import nn  # noqa: E402

from fastgan import data, engines, ops, random  # noqa: E402
from fastgan.problem import make_problem  # noqa: E402

SHAPES = ((1, 1, 1), (3, 17, 5), (10, 35, 37), (33, 70, 130))  # batch, in, out
STEPS = 5  # an epoch and a bit
PAIR_CALLS = 8
PLAN = {"hidden": 37, "image": (1, 5, 7), "latent": 13, "batch": 10, "images": 40}
PLANS = (
    Plan(**PLAN),
    Plan(**PLAN, depth=3, batchnorm="both"),
    Plan(**PLAN, depth=4, dropout=0.0),
    Plan(**PLAN, depth=3, penalty="wgan-gp", d_steps=2),
    Plan(**PLAN, penalty="r1"),
)
ENGINES = {
    "eager": ("fastgan-eager", "fastgan-eager-bf16"),
    "graph": ("graph", "graph-bf16"),
    "chain": ("fused-chain", "fused-chain-tf32", "fused-chain-bf16"),
    "persistent": ("fused", "fused-tf32", "fused-bf16"),
}


def operators(device: str) -> None:
    """Forward, backward and, where there is one, second backward."""
    dtypes = [torch.float32, torch.float64, torch.bfloat16]
    for dtype in dtypes:
        for batch, features, out in SHAPES:
            linear(batch, features, out, dtype, device)
            losses(batch, dtype, device)
    for batch, features, _ in SHAPES:
        draws((batch, features), device)
    optimisers(device)


def linear(batch: int, features: int, out: int, dtype: torch.dtype, device: str) -> None:
    x, weight, bias = (
        torch.randn(size, dtype=dtype, device=device, requires_grad=True)
        for size in ((batch, features), (out, features), (out,))
    )
    mask = 0.3, 1, 64, torch.full((1,), 3, dtype=torch.int64, device=device)
    for b in (bias, None):
        for y in (
            ops.linear_leaky_relu(x, weight, b),
            ops.linear_leaky_relu_dropout_at(x, weight, b, 0.2, *mask),
        ):
            (slope,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
            finite(*torch.autograd.grad(slope.float().square().sum(), (x, weight)))
        y = ops.linear_leaky_relu_dropout_at(x, weight, b, 0.2, *mask)
        finite(*torch.autograd.grad(y.float().square().sum(), (x, weight)))


def losses(batch: int, dtype: torch.dtype, device: str) -> None:
    real, fake = (
        torch.randn(batch, 1, dtype=dtype, device=device, requires_grad=True) for _ in range(2)
    )
    finite(*torch.autograd.grad(ops.discriminator_loss(real, fake, real_label=0.9), (real, fake)))
    for saturating in (False, True):
        finite(*torch.autograd.grad(ops.generator_loss(fake, saturating=saturating), fake))


def draws(shape: tuple[int, ...], device: str) -> None:
    counter = torch.full((1,), 3, dtype=torch.int64, device=device)
    finite(random.uniform(1, 2, 3, shape, device=device))
    finite(random.normal(1, 2, 3, shape, device=device))
    random.words(1, 2, 3, shape[0] * shape[1], start=5, device=device)
    random.keep_mask(1, 2, 3, shape, 0.3, device=device)
    finite(ops.philox_normal_at(torch.empty(shape, device=device), 1, 2, counter, 4, 5))
    ops.keep_mask_at(torch.empty(shape, device=device, dtype=torch.bool), 1, 2, counter, 4, 5, 0.3)
    x = torch.randn(shape, device=device, requires_grad=True)
    for dtype in (torch.float32, torch.bfloat16):
        finite(torch.autograd.grad(ops.dropout_at(x.to(dtype), 0.3, 1, 64, counter).sum(), x)[0])
    batch, features = shape
    pixels = torch.randint(0, 256, (3 * batch, 1, features, 3), dtype=torch.uint8, device=device)
    order = torch.randperm(len(pixels), device=device)
    for source in (pixels, pixels.float()):
        out = ops.gather_normalize(source, order, counter, batch=batch, batches_per_epoch=3)
        finite(out)


def optimisers(device: str) -> None:
    sizes = ((37, 35), (37,), (1, 1), (1023,))
    weights, grads, first, second = (
        [torch.rand(size, device=device) for size in sizes] for _ in range(4)
    )
    ops.adam_(weights, grads, first, second, step=1, lr=1e-3, weight_decay=0.1, decoupled=True)
    step, rate = torch.ones((), device=device), torch.full((), 1e-3, device=device)
    for options in (
        {},
        {
            "grad_scale": torch.full((), 2.0, device=device),
            "found_inf": torch.zeros((), device=device),
        },
    ):
        ops.adam_device_(weights, grads, first, second, step, rate, **options)
    ops.ema_(first, weights, 0.9)
    finite(*weights, *first)


def pair(name: str, device: str, steps: int) -> None:
    """The reference pair, batch 64, fp32, in calls of so many steps: what a profiler looks at."""
    peer = CATALOGUE[ENGINES[name][0]].load(device)
    peer.setup(Plan(), torch.get_num_threads())
    for _ in range(PAIR_CALLS):
        peer.run(steps)
    print(f"{peer.describe()}; losses {peer.check()}")
    peer.close()


def engine(name: str, device: str) -> None:
    """A few steps of a few plans in every precision."""
    for peer_name in ENGINES[name]:
        entry = CATALOGUE[peer_name]
        for plan in PLANS:
            peer = entry.load(device)
            try:
                peer.setup(plan, torch.get_num_threads())
            except Unavailable as reason:
                print(f"{peer_name}: {plan.depth} layers: not run: {reason}")
                continue
            peer.run(STEPS)
            peer.run(1)
            losses = peer.check()
            print(f"{peer_name}: {plan.depth} layers: {peer.describe()}; losses {losses}")
            peer.close()


def curved(device: str) -> None:
    """Of engine `fused` what no plan above has: second derivatives of activations, of the last one
    too, penalties at all places, some of them not at every update, and clipped gradients."""
    images = torch.randint(0, 256, (40, 1, 5, 7), dtype=torch.uint8, device=device)
    for last in ([], [nn.Tanh()]):
        g = nn.Sequential(nn.Linear(13, 19), nn.BatchNorm1d(19), nn.ELU(), nn.Linear(19, 35))
        hidden = (nn.Linear(35, 37), nn.Tanh(), nn.Dropout(0.3), nn.Linear(37, 18), nn.ELU())
        more = (nn.Linear(18, 9), nn.LeakyReLU(0.1), nn.Linear(9, 1))
        problem = make_problem(
            nn.Sequential(g, nn.Unflatten(1, images.shape[1:])).to(device),
            nn.Sequential(nn.Flatten(), *hidden, *more, *last).to(device),
            data.open(images.cpu()).to(torch.device(device)),
            latent_dim=13,
            batch_size=12,
            d_steps=2,
            penalties=["wgan-gp:10:2", "r1:1", "r2:1:3"],
            grad_clip=0.5,
            grad_clip_value=0.1,
            weight_clip=0.5,
            loss="hinge",
            device=device,
        )
        made, said = engines.choose(problem, "fused")
        finite(made.run(STEPS), made.run(1))
        print(f"penalties and bounds: {said}")
        made.close()


def finite(*tensors: torch.Tensor) -> None:
    for t in tensors:
        if not torch.isfinite(t).all():
            raise FloatingPointError(f"a result of shape {tuple(t.shape)} is not finite")


def main(argv: list[str] | None = None) -> int:
    """Returns 0; 3 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("operators", *ENGINES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument(
        "--pair", action="store_true", help="the reference pair instead of small plans"
    )
    parser.add_argument(
        "--steps", type=int, default=50, help="of a call of the pair (default %(default)s)"
    )
    options = parser.parse_args(argv)
    if options.pair and options.what == "operators":
        parser.error("--pair is run by an engine: " + ", ".join(ENGINES))
    if options.device == "cuda" and not torch.cuda.is_available():
        print("SKIPPED: no GPU")
        return 3
    if options.device == "cuda" and ops.library_status()["cuda"] != "loaded":
        print(f"no kernels of fastgan to run: the CUDA library is {ops.library_status()['cuda']}")
        return 1
    torch.manual_seed(0)
    if options.what == "operators":
        operators(options.device)
    elif options.pair:
        pair(options.what, options.device, options.steps)
    else:
        engine(options.what, options.device)
        if options.what == "chain":
            curved(options.device)
    if options.device == "cuda":
        torch.cuda.synchronize()
    print(f"{options.what}: done; libraries {ops.library_status()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
