"""Sound arguments for the operators of the fused step, for tests/fuzz.py."""

import math
import random
from dataclasses import replace

import torch
from torch import Tensor


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
            "shared_fakes": rng.random() < 0.3,
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
            "shared_fakes": False,
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
