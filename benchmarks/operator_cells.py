"""What benchmarks/operators.py times: each operator beside what a torch program would call.

Both sides run in one process in short turns, in alternating order, so that whatever else the
machine does falls on both. On a GPU a call is one of many in a CUDA graph, as the engines use the
operators, and calls go round over sets of inputs that together are twice as large as the L2 (or as
many as MOST_SETS): nothing is found in the cache because the call before left it there. Replays are
timed by events.
"""

from __future__ import annotations

import functools
import gc
import statistics
import time
from collections.abc import Callable

import gpu
import torch
import torch.nn.functional as F

from fastgan import ops, optim, random

SLOPE = 0.2
MOST_SETS = 256
FEWEST_NODES = 16  # calls in a graph, so that its own launch does not count

Call = Callable[[], object]
Clock = Callable[[Call, int], float]
Side = Callable[[], Call]
"""Makes a call on inputs of its own."""


def seconds(call: Call, times: int) -> float:
    """The time of one call, over `times` of them."""
    begin = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begin) / times


def gpu_seconds(call: Call, times: int, *, per: int) -> float:
    """The time of one of the `per` calls that each `call` replays."""
    return gpu.between_events(call, times) / times / per


def input_sets(device: str, nbytes: int) -> int:
    """How many sets of inputs of that size calls go round over."""
    if device != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return min(MOST_SETS, 1 + 2 * cache // max(nbytes, 1))


def prepare(device: str, sets: int, sides: tuple[Side, Side]) -> tuple[Call, Call, Clock]:
    """The two sides ready for `race`."""
    if device != "cuda":
        ours, theirs = (side() for side in sides)
        return ours, theirs, seconds
    rounds = -(-FEWEST_NODES // sets)
    ours, theirs = (_recorded([side() for _ in range(sets)] * rounds) for side in sides)
    return ours, theirs, functools.partial(gpu_seconds, per=sets * rounds)


def _recorded(calls: list[Call]) -> Call:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # which fills the inputs
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def race(
    ours: Call, theirs: Call, clock: Clock = seconds, *, turns: int, turn_seconds: float
) -> dict:
    """Both in turns of about `turn_seconds` a side, or of two calls if that is longer.

    A turn runs ours, theirs, theirs, ours, the next one the other way round: a drift, and whatever
    it costs to be first, falls on both.
    """
    for call in (ours, theirs):  # allocators, thread pools and caches
        call()
        call()
    per = getattr(clock, "keywords", {}).get("per", 1)
    times = max(1, int(turn_seconds / 2 / max(per * clock(theirs, 3), 1e-9)))
    mine: list[float] = []
    torchs: list[float] = []
    gc.collect()
    gc.disable()
    try:
        for turn in range(turns):
            first, second = (ours, theirs) if turn % 2 else (theirs, ours)
            a1, b1 = clock(first, times), clock(second, times)
            b2, a2 = clock(second, times), clock(first, times)
            outer, inner = (a1, a2), (b1, b2)
            mine.append(outer if turn % 2 else inner)
            torchs.append(inner if turn % 2 else outer)
    finally:
        gc.enable()
    ratios = [sum(a) / sum(b) for a, b in zip(mine, torchs, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    best = [min(min(pair) for pair in side) for side in (mine, torchs)]
    return {
        "ours_us": round(statistics.median(sum(a) / 2 for a in mine) * 1e6, 2),
        "torch_us": round(statistics.median(sum(b) / 2 for b in torchs) * 1e6, 2),
        "ours_best_us": round(best[0] * 1e6, 2),
        "torch_best_us": round(best[1] * 1e6, 2),
        "ratio": round(middle, 4),
        "ratio_quartiles": [round(low, 4), round(high, 4)],
        "ratio_of_best": round(best[0] / best[1], 4),
        "turns": turns,
        "calls_a_turn": 2 * times * per,
    }


def forward_and_backward(layer, x, weight, bias, grad) -> Call:
    def call():
        return torch.autograd.grad(layer(x, weight, bias), (x, weight, bias), grad)

    return call


def linear_cell(
    batch: int, features: int, out: int, dtype: torch.dtype, pace: dict, device: str = "cpu"
) -> dict:
    torch.manual_seed(0)

    def ours(x, weight, bias):
        return ops.linear_leaky_relu(x, weight, bias, SLOPE)

    def theirs(x, weight, bias):
        return F.leaky_relu(F.linear(x, weight, bias), SLOPE)

    # Inputs and gradients.
    elements = 2 * (batch * features + out * features + out) + batch * out
    sets = input_sets(device, elements * dtype.itemsize)
    inputs = []
    for _ in range(sets):
        sizes = ((batch, features), (out, features), (out,))
        made = [torch.randn(n, dtype=dtype, device=device, requires_grad=True) for n in sizes]
        inputs.append((*made, torch.randn(batch, out, dtype=dtype, device=device)))

    def side(layer) -> Side:
        following = iter(inputs)
        return lambda: forward_and_backward(layer, *next(following))

    return race(*prepare(device, sets, (side(ours), side(theirs))), **pace) | {"sets": sets}


def gpu_cells(pace: dict) -> dict[str, dict]:
    """What engines draw and move on the device, beside what a torch program would call."""
    cells: dict[str, tuple[int, Side, Side]] = {}
    counter = torch.zeros(1, dtype=torch.int64, device="cuda")

    def normal(n):
        def ours():
            out = torch.empty(n, device="cuda")
            return lambda: ops.philox_normal_at(out, 0, 0, counter)

        def theirs():
            out = torch.empty(n, device="cuda")
            return lambda: out.normal_()

        return 4 * n, ours, theirs

    def dropout(rows, columns):
        def ours():
            x = torch.randn(rows, columns, device="cuda")
            return lambda: ops.dropout_at(x, 0.3, 0, 64, counter, 1, 0)

        def theirs():
            x = torch.randn(rows, columns, device="cuda")
            return lambda: F.dropout(x, 0.3)

        return 8 * rows * columns, ours, theirs

    def dropping_layer(batch, features, out):
        sizes = ((batch, features), (out, features), (out,))

        def made():
            inputs = [torch.randn(size, device="cuda", requires_grad=True) for size in sizes]
            return *inputs, torch.randn(batch, out, device="cuda")

        def ours():
            def layer(x, weight, bias):
                where = 0, 64, counter, 1, 0
                return ops.linear_leaky_relu_dropout_at(x, weight, bias, SLOPE, 0.3, *where)

            return forward_and_backward(layer, *made())

        def theirs():
            def layer(x, weight, bias):
                return F.dropout(F.leaky_relu(F.linear(x, weight, bias), SLOPE), 0.3)

            return forward_and_backward(layer, *made())

        return 8 * (batch * (features + out) + out * features), ours, theirs

    def losses(batch):
        def both():
            real, fake = (
                torch.randn(batch, 1, device="cuda", requires_grad=True) for _ in range(2)
            )
            return real, fake

        def ours():
            real, fake = both()
            return lambda: torch.autograd.grad(ops.discriminator_loss(real, fake), (real, fake))

        def theirs():
            real, fake = both()
            ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
            bce = F.binary_cross_entropy_with_logits
            return lambda: torch.autograd.grad(bce(real, ones) + bce(fake, zeros), (real, fake))

        return 32 * batch, ours, theirs

    def gather(batch):
        pixels = torch.randint(0, 256, (60_000, 1, 28, 28), dtype=torch.uint8, device="cuda")
        order = torch.randperm(len(pixels), device="cuda")
        place = {"multiplier": 1, "batch": batch, "batches_per_epoch": len(pixels) // batch}
        drawn = iter(range(2 * MOST_SETS))

        def ours():
            at, out = next(drawn), torch.empty(batch, 1, 28, 28, device="cuda")
            return lambda: ops.gather_normalize(pixels, order, counter, offset=at, out=out, **place)

        def theirs():
            at = next(drawn) % (len(pixels) // batch)
            rows = order[at * batch : (at + 1) * batch]
            return lambda: pixels[rows].float().mul_(2 / 255).sub_(1)

        return 5 * 784 * batch, ours, theirs

    for n in (64 * 100, 1 << 22):
        cells[f"normal, {n}"] = normal(n)
    for rows in (64, 8192):
        cells[f"dropout, {rows} x 256"] = dropout(rows, 256)
        cells[f"layer with dropout, {rows} x 784 x 256"] = dropping_layer(rows, 784, 256)
        cells[f"discriminator_loss, batch {rows}"] = losses(rows)
        cells[f"gather and normalise, batch {rows}"] = gather(rows)
    measured = {}
    for name, (nbytes, *sides) in cells.items():
        sets = input_sets("cuda", nbytes)
        measured[name] = race(*prepare("cuda", sets, sides), **pace) | {"sets": sets}
    return measured


def other_cells() -> dict[str, tuple[Call, Call]]:
    """The operators that are not products, beside what a torch program would call."""
    torch.manual_seed(0)
    real, fake = (torch.randn(64, 1, requires_grad=True) for _ in range(2))
    ones, zeros = torch.ones(64, 1), torch.zeros(64, 1)
    bce = F.binary_cross_entropy_with_logits

    def our_loss():
        return torch.autograd.grad(ops.discriminator_loss(real, fake), (real, fake))

    def their_loss():
        return torch.autograd.grad(bce(real, ones) + bce(fake, zeros), (real, fake))

    def our_generator_loss():
        return torch.autograd.grad(ops.generator_loss(fake), fake)

    def their_generator_loss():
        return torch.autograd.grad(bce(fake, ones), fake)

    def adam(cls, **options):
        # The discriminator of the reference pair.
        shapes = [(256, 784), (256,), (1, 256), (1,)]
        parameters = [torch.randn(shape, requires_grad=True) for shape in shapes]
        for p in parameters:
            p.grad = torch.randn_like(p)
        return cls(parameters, lr=2e-4, betas=(0.5, 0.999), **options).step

    return {
        "discriminator_loss, batch 64": (our_loss, their_loss),
        "generator_loss, batch 64": (our_generator_loss, their_generator_loss),
        "Adam, 201k parameters; torch's default": (adam(optim.Adam), adam(torch.optim.Adam)),
        "Adam, 201k parameters; torch's fused": (
            adam(optim.Adam),
            adam(torch.optim.Adam, fused=True),
        ),
        "normal, 64 x 100": (
            lambda: random.normal(0, 0, 0, (64, 100)),
            lambda: torch.randn(64, 100),
        ),
        "normal, 1M": (lambda: random.normal(0, 0, 0, 1 << 20), lambda: torch.randn(1 << 20)),
        "dropout mask, 64 x 256": (
            lambda: random.keep_mask(0, 64, 0, (64, 256), 0.3),
            lambda: torch.rand(64, 256) >= 0.3,
        ),
    }
