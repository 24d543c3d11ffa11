"""Calls the compiled operators with hostile arguments: a call may raise, none may end the process.

python tests/fuzz.py --calls 100000                  # a minute or two; 2 for a failure
python tests/fuzz.py --only fused_run --first 70412 --calls 1 --seed 5     # a call again

Which arguments an operator takes is an entry of OPERATORS, or of fuzz_operators.py or
fuzz_table.py, which make them hostile themselves. A call of the first kind mutates some of the
arguments of a sound one; --sound 0.3 leaves that share of the calls as they are, so that what comes
after a caught error runs too. The calls run in a child process, and where it ends the parent says
at which.
"""

import argparse
import math
import random
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from fuzz_operators import OPERATORS as OTHERS
from fuzz_table import OPERATORS as OF_TABLES
from torch import Tensor

PER_CASE = 40
"""Calls on the same sound arguments, which are not worth making anew each time."""

INTEGERS = (-(1 << 63), -(1 << 40), -65, -2, -1, 0, 1, 2, 3, 7, 31, 33, 64, 65535, 65537, 1 << 20)
INTEGERS += (1 << 24, (1 << 24) + 1, (1 << 31) - 1, 1 << 31, 1 << 34, 1 << 40, 1 << 62)
INTEGERS += ((1 << 63) - 1,)
REALS = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, -1.0, 1.0, 2.0, 1e-300, 1e300, 1e38)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32)
DTYPES += (torch.uint8, torch.bool, torch.complex64)


# --- Sound arguments


class Fused:
    """A plan of the fused step; the arguments of each operator that takes one."""

    def __init__(self, rng: random.Random):
        import written_plans as plans

        def layer(out, last=False):
            norm = "none" if last else rng.choice(("none", "none", "none", "batch", "layer"))
            return plans.Layer(
                out,
                rng.choice(plans.ACTIVATIONS),
                rng.choice((0.0, 0.2, 1.0)),
                norm=norm == "batch",
                row_norm=norm == "layer",
                drop=rng.choice((0.0, 0.0, 0.3, 1.0)) if not last else 0.0,
                bias=rng.random() < 0.8,
            )

        def width():
            return rng.choice((1, 3, 8, 17, 33, 70))

        image = width()
        heads = self.heads(rng, image)
        generator = [layer(width()) for _ in range(rng.randrange(3))] + [
            plans.Layer(image, "none") if heads else layer(image)
        ]
        critic = [layer(width()) for _ in range(rng.randrange(3))] + [layer(1, last=True)]
        joins = []
        for layers in (generator, critic):
            joins.append([])
            if (n := len(layers) - 1) and rng.random() < 0.4:
                # The last layer takes the one before it beside another node.
                joins[-1].append((n, 1, n, rng.randrange(n + 1)))
                layers[-1] = replace(layers[-1], source=n + 2)
        batch, pack = rng.choice((2, 3, 8, 40)), rng.choice((1, 1, 2))
        penalties = [
            (rng.randrange(2), rng.randrange(3), rng.choice((1, 1, 2)), 10.0)
            for _ in range(rng.choice((0, 0, 1, 2, 3)))
        ]
        options = {
            "networks": (generator, critic),
            "joins": tuple(joins),
            "latent": width(),
            "image": image,
            "pack": pack,
            "batch": batch * pack,
            "count": pack * (batch * rng.randrange(1, 3) + rng.choice((0, 2))),
            "d_steps": rng.choice((1, 1, 2)),
            "loss": rng.randrange(5),
            "precision": rng.randrange(2),
            "average": rng.random() < 0.5,
            "bytes": rng.random() < 0.5,
            "threads": rng.choice((1, 1, 2, 3)),
            "draw": rng.randrange(1 << 30),
        }
        if rng.random() < 0.3:
            options |= {"parts": self.parts(rng, joins, pack), "drawn": rng.random() < 0.7}
        if heads:
            options |= {"heads": heads, "terms": rng.choice(((), (), ((0, 2.0),)))}
        self.case = plans.Case(**options)
        clips = rng.choice((1e-3, math.inf, math.inf)), rng.choice((0.1, math.inf, math.inf))
        if not options["precision"] and not any(one.norm for one in critic):
            self.case = plans.Case(**options, clips=clips, penalties=penalties)
        elif clips != (math.inf, math.inf):
            self.case = plans.Case(**options, clips=clips, g_steps=rng.choice((1, 2)))
        # What the kernels of a GPU know of it.
        plain = [
            [replace(one, row_norm=False, source=None) for one in own]
            for own in options["networks"]
        ]
        curved = any(one.activation in ("gelu", "gelu_tanh", "silu", "softplus") for one in critic)
        options |= {"networks": plain, "joins": ((), ()), "clips": self.case.clips}
        options |= {
            "heads": (),
            "terms": (),
            "pack": 1,
            "parts": ((), ()),
            "g_steps": rng.choice((1, 1, 2)),
        }
        options["penalties"] = () if curved else self.case.penalties
        self.on_cuda = plans.Case(**options)
        self.memory = {}

    @staticmethod
    def parts(rng: random.Random, joins: list, pack: int) -> tuple:
        import written_plans as plans

        if rng.random() < 0.3:
            return ((plans.Part("numbers", 3),),) * 2
        # An input with an embedding is taken by the first layer alone, and not in packs.
        alone = not joins[0], not joins[1] and pack == 1
        kinds = [("one_hot", "embedding") if own else ("one_hot",) for own in alone]
        return tuple(
            tuple(
                plans.Part(kind, 5 if kind == "one_hot" else rng.choice((1, 4, 33)), 5)
                for kind in own[: rng.randrange(3)]
            )
            for own in kinds
        )

    @staticmethod
    def heads(rng: random.Random, columns: int) -> tuple:
        import written_plans as plans

        heads = []
        while columns and (heads or rng.random() < 0.3):
            kind, wide = rng.choice(("columns", "softmax", "gumbel")), rng.randint(1, columns)
            activation = rng.choice(plans.ACTIVATIONS[:4]) if kind == "columns" else "none"
            hard = kind == "gumbel" and rng.random() < 0.5
            heads.append(plans.Head(kind, wide, activation, rng.choice((0.2, 1.0)), hard))
            columns -= wide
        return tuple(heads)

    def _memory(self, size: int) -> Tensor:
        import written_plans as plans

        if size not in self.memory:
            self.memory[size] = plans.aligned(size, 256)
        return self.memory[size]

    def run(self, rng: random.Random) -> list:
        c, steps, first = self.case, rng.choice((0, 1, 1, 2)), rng.choice((0, 1, 5))
        arguments = c.arguments(steps, first)[:11]
        if rng.random() < 0.2:  # fed without an order
            rows = max(1, steps * c.d_steps * c.batch)
            arguments[4:6] = torch.zeros(rows, c.image), None
        if rng.random() < 0.2:
            phases = torch.ops.fastgan.fused_phases(c.plan, c.settings).count("\n")
            arguments[8] = torch.zeros(phases, 2, dtype=torch.float64)
        return [*arguments, *c.given(first, steps), self.sums(rng)]

    def sums(self, rng: random.Random) -> Tensor | None:
        count = 14 + len(self.case.terms)
        return rng.choice((None, torch.zeros(count, dtype=torch.float64)))

    def part(self, rng: random.Random, moves: bool) -> list:
        c, update = self.case, rng.randrange(self.case.d_steps + self.case.g_steps)
        shared = [c.plan, c.settings, c.state, c.memory()]
        gradients = torch.zeros(c.numbers(0 if update >= c.d_steps else 1) + 4)
        if moves:
            return [*shared, gradients, c.rates, update, c.threads, self.sums(rng)]
        ranks = rng.choice((1, 2, 3, 50))
        widths = [one.out for own in c.networks for one in own if one.norm]
        widest = max([*widths, *(c.image for kind, _ in c.terms if kind == 0)], default=0)
        images, order = c.images, c.order
        if rng.random() < 0.2:
            images, order = torch.zeros(c.batch, c.image), None
        step = rng.choice((0, 1, 5))
        where = [step, update, rng.randrange(ranks), ranks]
        moments = torch.zeros(ranks, 4 * widest, dtype=torch.float64) if widest else None
        told = [self.sums(rng), rng.choice((0, 0, 4, 9)), moments if ranks > 1 else None]
        return [*shared, images, order, gradients, *where, c.threads, *told, *c.given(step, 1)]

    def plan_on_cuda(self) -> list[Tensor]:
        return [self.on_cuda.plan, self.on_cuda.settings]

    def run_cuda(self, rng: random.Random) -> list:
        c, persistent = self.on_cuda, rng.random() < 0.5
        size = torch.ops.fastgan.fused_cuda_memory(c.plan, c.settings, 2 if persistent else 1)
        clock = torch.tensor([0, 0, 0, 0, 0])
        rates, statistics = torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, 4)
        shared = [c.plan, c.settings, c.state, self._memory(size)]
        stamps = torch.zeros(200, dtype=torch.int64) if rng.random() < 0.2 else None
        tables = [c.images, c.order, clock, rates, statistics, stamps]
        return [*shared, *tables, rng.randrange(3), False, persistent]

    def together_on_cuda(self, rng: random.Random) -> list:
        """Two jobs of one plan, whose tensors are their own."""
        c = self.on_cuda
        size = torch.ops.fastgan.fused_cuda_memory(c.plan, c.settings, 2)
        count = rng.choice((1, 2))
        states = [c.state, [t.clone() for t in c.state]][:count]

        def each(make) -> list:
            return [make() for _ in range(count)]

        return [
            [c.plan] * count,
            [c.settings] * count,
            [t for state in states for t in state],
            [len(c.state)] * count,
            [self._memory(size), self._memory(size + 256)][:count],
            [c.images] * count,
            [c.order] * count,
            each(lambda: torch.tensor([0, 0, 0, 0, 0])),
            each(lambda: torch.zeros(3, 2, dtype=torch.float64)),
            each(lambda: torch.zeros(3, 4)),
            rng.randrange(3),
            False,
        ]


OPERATORS = {
    "fused_products": (Fused, lambda f, rng: [rng.choice(("fp32", "bf16"))]),
    "fused_wake": (Fused, lambda f, rng: [f.case.threads]),
    "fused_memory": (Fused, lambda f, rng: [f.case.plan, f.case.settings, f.case.threads]),
    "fused_phases": (Fused, lambda f, rng: [f.case.plan, f.case.settings]),
    "fused_run": (Fused, lambda f, rng: f.run(rng)),
    "fused_gradients": (Fused, lambda f, rng: f.part(rng, moves=False)),
    "fused_move": (Fused, lambda f, rng: f.part(rng, moves=True)),
    "fused_cuda_memory": (Fused, lambda f, rng: [*f.plan_on_cuda(), 1]),
    "fused_cuda_length": (Fused, lambda f, rng: f.plan_on_cuda()),
    "fused_cuda_phases": (Fused, lambda f, rng: f.plan_on_cuda()),
    "fused_cuda_why_not_persistent": (
        Fused,
        lambda f, rng: [*f.plan_on_cuda(), f.on_cuda.state, f._memory(256), False],
    ),
    "fused_cuda_most_at_once": (
        Fused,
        lambda f, rng: [*f.plan_on_cuda(), f.on_cuda.state, f._memory(256), False],
    ),
    "fused_cuda_run": (Fused, lambda f, rng: f.run_cuda(rng)),
    "fused_cuda_run_together": (Fused, lambda f, rng: f.together_on_cuda(rng)),
}
"""name: (what makes a case of a random generator, the sound arguments of a case)."""

HOSTILE = dict(OTHERS + OF_TABLES)
"""name: arguments that are hostile already, of a random generator."""

WEIGHTS = {"fused_run": 12, "fused_gradients": 6, "fused_cuda_run": 6}
"""How often an operator is called, against once."""


# --- Hostile ones


def hostile_values(rng: random.Random, t: Tensor) -> Tensor:
    """The same tensor with some elements replaced, moved, left out or added."""
    t = t.clone()
    flat = t.view(-1)
    if not len(flat):
        return t
    choices = REALS if t.is_floating_point() else INTEGERS
    if t.dtype not in (torch.float32, torch.float64, torch.int64):
        return torch.randint_like(t, 0, 2) if t.dtype != torch.complex64 else t
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at, other = rng.randrange(len(flat)), rng.randrange(len(flat))
        what = rng.randrange(4)
        if what == 0:
            flat[at] = flat[other].clone()
        elif what == 1 and t.dtype == torch.int64:
            flat[at] += rng.choice((-1, 1))
        else:
            value = rng.choice(choices)
            flat[at] = value if t.dtype != torch.float32 or abs(value) < 3e38 else float("inf")
    if t.dim() == 1 and rng.random() < 0.2:
        return rng.choice(
            (
                flat[: rng.randrange(len(flat))],
                torch.cat([flat, flat[: rng.randrange(1, 9)]]),
                torch.ones_like(flat),
                torch.full_like(flat, rng.choice(choices)) if t.dtype != torch.float32 else flat,
            )
        )
    return t


def hostile_tensor(rng: random.Random, t: Tensor, others: list[Tensor]) -> Tensor:
    """Another dtype, shape, layout, place or content."""
    if t.is_sparse or t.is_meta or t.numel() > 1 << 22:  # it is already
        return t
    what = rng.randrange(14)
    if what < 5:
        return hostile_values(rng, t)
    if what == 5:
        return t.to(rng.choice(DTYPES))
    if what == 6:
        return t.reshape(-1)[: rng.randrange(t.numel() + 1)]
    if what == 7:
        return t.unsqueeze(rng.randrange(t.dim() + 1)) if rng.random() < 0.5 else t.reshape(-1)
    if what == 8:  # not contiguous
        return torch.stack([t, t], -1)[..., 0]
    if what == 9:  # far larger than its memory
        return t.reshape(-1)[:1].expand(rng.choice((0, 3, 1 << 20, 1 << 40)))
    if what == 10:
        return torch.empty(rng.choice(((0,), (), (2, 0), (3, 4))), dtype=t.dtype)
    if what == 11:  # not aligned
        return torch.cat([t.reshape(-1)[:1], t.reshape(-1)])[1:].view(t.shape)
    if what == 12:
        return rng.choice(others)
    odd = rng.randrange(4)
    if odd == 0:
        return t.to("meta")
    if odd == 1 and t.dim() and not t.is_sparse:
        return t.to_sparse()
    if odd == 2 and t.is_floating_point():
        return torch._neg_view(t)
    return t.clone().requires_grad_(t.is_floating_point())


def tensors_in(arguments: list) -> list[Tensor]:
    """All of them, those in lists too."""
    found = []
    for a in arguments:
        found += [a] if isinstance(a, Tensor) else tensors_in(a) if isinstance(a, list) else []
    return found


def hostile(rng: random.Random, a: object, others: list[Tensor]) -> object:
    """Something else in the place of an argument."""
    if isinstance(a, Tensor):
        try:
            return None if rng.random() < 0.03 else hostile_tensor(rng, a, others)
        except RuntimeError:  # an odd tensor that cannot be made odder
            return a
    if isinstance(a, bool):
        return not a
    if isinstance(a, int):
        return rng.choice(INTEGERS) if rng.random() < 0.7 else a + rng.choice((-1, 1))
    if isinstance(a, float):
        return rng.choice(REALS)
    if isinstance(a, str):
        return rng.choice(("", "fp16", "none", "\0", "x" * 4096))
    if isinstance(a, list):
        a, at = list(a), rng.randrange(max(1, len(a)))
        what = rng.randrange(4)
        if not a or what == 0:
            return a[:at]
        if what == 1:
            a[at] = a[rng.randrange(len(a))]
        elif what == 2:
            a.insert(at, rng.choice(others))
        else:
            a[at] = hostile(rng, a[at], others)
            a = [t for t in a if t is not None]
        return a
    return rng.choice(others) if others and a is None else a


def affordable(name: str, arguments: list) -> bool:
    """Whether a call that is accepted ends soon: sound plans may be long, and threads many."""
    at = {"fused_run": 10, "fused_wake": 0, "fused_gradients": 11, "fused_move": 7}.get(name)
    if at is not None and isinstance(arguments[at], int) and 8 < arguments[at] <= 4096:
        return False
    if not name.endswith(("_run", "_together")):
        return True
    return not any(
        plan.dtype == torch.int64
        and plan.dim() == 1
        and plan.device.type == "cpu"
        and plan.numel() > 3
        and 64 < int(plan[3]) <= 1 << 20
        for plan in tensors_in(arguments[:1])
    )


def call(name: str, arguments: list) -> str:
    """Call an operator; the kind of what came of it."""
    try:
        getattr(torch.ops.fastgan, name)(*arguments)
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        return type(error).__name__
    return "done"


def work(options: argparse.Namespace) -> None:
    """Make the calls, in the child."""
    sys.path[:0] = [str(Path(__file__).parent)]
    import fastgan

    if options.emulator:
        from native import fused_cuda

        fused_cuda.load().device(4)
    torch.set_num_threads(1)
    names = [n for n in (*OPERATORS, *HOSTILE) if options.only in (None, n)]
    names = [
        n
        for n in names
        if options.emulator
        or "cuda" not in n
        or (torch.cuda.is_available() and fastgan.ops.has_kernels(torch.device("cuda")))
    ]
    names = [n for n in names for _ in range(WEIGHTS.get(n, 1))]
    cases, outcomes = {}, Counter()
    with open(options.at, "r+b", buffering=0) as at:
        for i in range(options.first, options.first + options.calls):
            rng = random.Random(f"{options.seed} {i}")
            name = rng.choice(names)
            at.seek(0)
            at.write(f"{i} {name}".ljust(80).encode())
            if name in HOSTILE:
                outcomes[f"{name} {call(name, HOSTILE[name](rng))}"] += 1
                continue
            kind, sound = OPERATORS[name]
            key = (kind, i // PER_CASE)
            if key not in cases:
                cases = {k: v for k, v in cases.items() if k[1] == i // PER_CASE}
                cases[key] = kind(random.Random(f"{options.seed} case {key[1]}"))
            arguments = sound(cases[key], rng)
            if rng.random() >= options.sound:
                others = tensors_in(arguments)
                for _ in range(rng.choice((1, 1, 1, 2, 3))):
                    k = rng.randrange(len(arguments))
                    if k > 0 and rng.random() < 0.3 and isinstance(arguments[0], Tensor):
                        k = 0  # what everything else is read by
                    arguments[k] = hostile(rng, arguments[k], others)
            if affordable(name, arguments):
                outcomes[f"{name} {call(name, arguments)}"] += 1
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:8d} {outcome}")


def main() -> int:
    """The command line; 0 if no call ended the process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=10000)
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=[*OPERATORS, *HOSTILE], help="of the operators only this")
    parser.add_argument("--sound", type=float, default=0.2, help="share of calls left sound")
    parser.add_argument("--emulator", action="store_true", help="the CUDA operators, emulated")
    parser.add_argument("--timeout", type=float, default=3600)
    parser.add_argument("--at", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.at:
        work(options)
        return 0
    with tempfile.NamedTemporaryFile() as at:
        command = [sys.executable, __file__, *sys.argv[1:], "--at", at.name]
        try:
            done = subprocess.run(command, timeout=options.timeout)
        except subprocess.TimeoutExpired:
            print(f"call {at.read().decode().strip()} did not end", file=sys.stderr)
            return 2
        if done.returncode:
            print(
                f"the process ended with {done.returncode} in call {at.read().decode().strip()}",
                file=sys.stderr,
            )
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
