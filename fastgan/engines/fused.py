"""The fused engine: whole steps of two multilayer perceptrons in C++, with no autograd in between.

What is here serves the CPU, and the plan and the tables of a run serve both devices; the rest of
the road on a GPU is in fused_cuda.py.

The networks' own tensors are worked on where they are. Nothing is packed before a run or copied
back after it, so what a user reads between two runs is what the last step left.
"""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch
from torch import Tensor, get_num_threads
from torch.autograd.graph import increment_version

from fastgan import ops, plan, random
from fastgan.engines.base import Engine, Problem, learning_rate_factor
from fastgan.losses import GAMES, _MinimaxD

GAME_NUMBERS = {
    name: i
    for i, name in enumerate(("non-saturating", "minimax", "hinge", "least-squares", "wasserstein"))
}
"""The games by their numbers in csrc/cpu/step.h."""

_NUMBERS = ("betas", "eps", "weight_decay")
_OPTIONS = ("amsgrad", "maximize", "capturable", "differentiable")
"""What an optimiser's group has besides a learning rate."""

_SPARE = 64
"""Tensors for the losses of one step, made at a time."""

_KEPT_ORDER = 1 << 22
"""Entries of permutations that one call of the operator may take: what bounds a call, besides n."""


class FusedEngine(Engine):
    """Runs a pair of MLPs on the CPU, any number of steps per call.

    What fits is described in `fastgan.plan`. Adam and AdamW, the five games of `fastgan.losses`, an
    average of the generator, learning-rate schedules and any batch size are part of the step. The
    number of threads is torch.get_num_threads(); it does not change a bit of the results.
    """

    name = "fused"

    def __new__(cls, problem: Problem):
        """The engine of the problem's device."""
        if cls is FusedEngine and problem.device.type == "cuda":
            from fastgan.engines.fused_cuda import FusedCudaEngine

            cls = FusedCudaEngine
        return super().__new__(cls)

    def __init__(self, problem: Problem):
        """Read the networks and lay out the working memory; ValueError if they have no plan."""
        super().__init__(problem)
        self._spare: list[Tensor] = []
        self._fused_run = torch.ops.fastgan.fused_run.default
        self._rates = (torch.empty(0), (-1.0, -1.0))
        self._memory: Tensor | None = None
        self._memory_key: tuple | None = None
        self._prepare()

    @classmethod
    def unsupported(cls, problem: Problem) -> str | None:
        """The reason why the problem has no fused form, or None."""
        try:
            _read(problem)
        except plan.NoPlan as reason:
            return str(reason)
        return None

    def describe(self) -> str:
        """Shapes, precision, instruction set, threads and working memory in one line."""
        threads = get_num_threads()
        precision = self.problem.precision
        isa = torch.ops.fastgan.fused_products(precision)
        return (
            f"whole steps in C++, {self._shapes()}, {precision}, {isa}, "
            f"{threads} thread{'s' * (threads > 1)}, {self.memory_bytes() / 2**20:.1f} MB of "
            "working memory"
        )

    def _shapes(self) -> str:
        g, d = (
            "-".join(str(n) for n in [c.layers[0].linear.in_features, *_widths(c)])
            for c in (self._g, self._d)
        )
        return f"G {g}, D {d}"

    def memory_bytes(self) -> int:
        """Bytes the engine holds besides the networks, their optimisers and the images."""
        return torch.ops.fastgan.fused_memory(self._plan, self._settings_tensor, get_num_threads())

    def run(self, n: int) -> Tensor:
        """Do n steps; see `Engine.run`."""
        if n < 0:
            raise ValueError(f"n is {n}; expected a number of steps, 0 or more")
        self._refresh()
        p = self.problem
        losses = self._losses_of_one() if n == 1 else torch.empty(n, 4, device=p.device)
        done = 0
        while done < n:
            if p.data.resident:
                images = p.data.pixels
                order, count = self._order(n - done)
            else:
                images, order, count = self._fed(), None, 1
                self._refresh()  # a user's code has run meanwhile
            self._run(images, order, count, losses[done : done + count] if count < n else losses)
            done += count
        self.statistics = losses
        return losses[:, :2]

    def profile(self, n: int) -> list[tuple[str, float, float, float]]:
        """Do n steps and time them.

        Returns:
            for each phase of a step (name, floating-point operations of its products, seconds at
            work, seconds waiting for the other threads), the last two of the first thread and
            averaged over the steps.
        """
        if n < 1:
            raise ValueError(f"n is {n}; expected at least 1 step")
        p = self.problem
        if not p.data.resident:
            raise ValueError("profile() takes images in memory; these are read as needed")
        self._refresh()
        names = self._phases()
        times = torch.zeros(len(names), 2, dtype=torch.float64)
        done = 0
        while done < n:
            order, count = self._order(n - done)
            self._run(p.data.pixels, order, count, torch.empty(count, 4), times)
            done += count
        times /= n
        return [(name, work, *row) for (name, work), row in zip(names, times.tolist(), strict=True)]

    def close(self) -> None:
        """Give the working memory back."""
        self._memory = self._memory_key = None
        self._spare.clear()
        self._orders.clear()
        self._epoch_order = (0, 0, None)

    def _losses_of_one(self) -> Tensor:
        # Making a tensor behind a step, with cold caches, takes ten times as long as making the
        # next one right after it.
        if not self._spare:
            self._spare = [torch.empty(1, 4, device=self.problem.device) for _ in range(_SPARE)]
        return self._spare.pop()

    def _run(
        self,
        images: Tensor,
        order: Tensor | None,
        n: int,
        losses: Tensor,
        profile: Tensor | None = None,
    ) -> None:
        rates = self._learning_rates(n)
        threads = get_num_threads()
        memory = self._memory_for(threads)
        # What autograd has saved of these before is out of date now, and must say so. Before the
        # steps, which leave little of anything else in the caches.
        increment_version(self._written)
        self._fused_run(
            self._plan,
            self._settings_tensor,
            self._tensors,
            memory,
            images,
            order,
            rates,
            losses,
            profile,
            self.step,
            threads,
        )
        self.step += n

    def _refresh(self) -> None:
        """Read anew what has changed since the last run."""
        p = self.problem
        if not (self._g.current() and self._d.current() and _kinds(p) == self._kinds):
            self._prepare()
        elif (settings := _settings(p)) != self._settings:
            self._write(settings)
        else:
            self._bind()

    def _prepare(self) -> None:
        """Read the networks and the settings anew."""
        self._g, self._d = _read(self.problem)
        self._kinds = _kinds(self.problem)
        self._write(_settings(self.problem))

    def _write(self, settings: tuple) -> None:
        p = self.problem
        self._settings = ()  # if it fails, the next run reads everything anew
        _alike(p.optimizer_g, "optimizer_g", *_NUMBERS)
        _alike(p.optimizer_d, "optimizer_d", *_NUMBERS)
        numbers = _Numbers()
        numbers.integers += [
            self._g.layers[0].linear.in_features,
            self._d.layers[0].linear.in_features,
            p.batch_size,
            p.d_steps,
            GAME_NUMBERS[p.game.name],
            p.seed - (1 << 64) if p.seed >= 1 << 63 else p.seed,
            len(p.data),
            int(p.precision == "bf16"),
        ]
        numbers.reals += [1.0 - p.game.label_smoothing, p.ema_decay]
        averages = _averages(p)
        for chain, optimizer in ((self._g, p.optimizer_g), (self._d, p.optimizer_d)):
            numbers.network(chain, optimizer, averages if chain is self._g else {})
        self._plan = torch.tensor(numbers.integers, dtype=torch.int64)
        self._settings_tensor = torch.tensor(numbers.reals, dtype=torch.float64)
        self._sources = numbers.sources
        self._written = numbers.written
        self._orders: dict[int, Tensor] = {}
        self._epoch_order: tuple[int, int, Tensor | None] = (0, 0, None)
        self._settings = settings
        self._bind()

    def _bind(self) -> None:
        """Lay ready what tells whether anything has changed, and point the plan to the tensors."""
        self._tensors = [
            source if key is None else source[0][source[1]][key] for source, key in self._sources
        ]
        self._looks = tuple((t.data_ptr(), t.shape, t.dtype, t.device) for t in self._tensors)
        self._point()

    def _point(self) -> None:
        """Make of the plan what the steps are run with."""

    def _memory_for(self, threads: int) -> Tensor:
        key = (self._plan, threads)
        if (
            self._memory_key is None
            or self._memory_key[0] is not key[0]
            or self._memory_key[1] != threads
        ):
            self._memory = _zeros(self.memory_bytes())
            self._memory_key = key
        return self._memory

    def _learning_rates(self, n: int) -> Tensor:
        """Of the next n steps; asked for before anything that _refresh() may replace is used."""
        p = self.problem
        base = (_rate(p.optimizer_d, "optimizer_d"), _rate(p.optimizer_g, "optimizer_g"))
        if p.lr_schedule is None:
            if self._rates[1] != base:
                self._rates = (torch.tensor(base, dtype=torch.float64), base)
            return self._rates[0]
        factors = [learning_rate_factor(p, t) for t in range(self.step, self.step + n)]
        self._refresh()  # a user's code has run meanwhile
        return torch.tensor(factors, dtype=torch.float64)[:, None] * torch.tensor(
            base, dtype=torch.float64
        )

    def _order(self, n: int) -> tuple[Tensor, int]:
        """The permutations for the next steps, at most n, and for how many steps they last."""
        start, stop, order = self._epoch_order
        if start <= self.step and self.step + n <= stop:
            return order, n
        p = self.problem
        per_epoch = p.data.batches_per_epoch(p.batch_size)
        first = self.step * p.d_steps // per_epoch
        epochs = max(1, _KEPT_ORDER // len(p.data))
        # A step is always whole: its updates may reach over the end of the last epoch taken.
        steps = min(n, max(1, ((first + epochs) * per_epoch) // p.d_steps - self.step))
        last = ((self.step + steps) * p.d_steps - 1) // per_epoch
        self._orders = {e: order for e, order in self._orders.items() if first <= e <= last}
        for e in range(first, last + 1):
            if e not in self._orders:
                self._orders[e] = random.permutation(p.seed, e, len(p.data), device=p.device)
        if first == last:
            start, stop = -(-first * per_epoch // p.d_steps), (first + 1) * per_epoch // p.d_steps
            self._epoch_order = (start, stop, self._orders[first])
            return self._orders[first], steps
        return torch.cat([self._orders[e] for e in range(first, last + 1)]), steps

    def _fed(self) -> Tensor:
        """The batches of one step, read through the data's own loader."""
        p = self.problem
        first = self.step * p.d_steps
        batches = [p.data.batch(p.seed, u, p.batch_size) for u in range(first, first + p.d_steps)]
        batches = [batch.float().contiguous() for batch in batches]
        return batches[0] if len(batches) == 1 else torch.cat(batches)

    def _phases(self) -> list[tuple[str, float]]:
        lines = torch.ops.fastgan.fused_phases(self._plan, self._settings_tensor)
        pairs = (line.split(" ", 1) for line in lines.splitlines())
        return [(name, float(work)) for work, name in pairs]


class _Numbers:
    """Writes the plan in the order in which csrc/cpu/step_ops.cpp reads it."""

    def __init__(self):
        self.integers: list[int] = []
        self.reals: list[float] = []
        # (tensor, None), or ((state of an optimiser, parameter), key): moments may be replaced.
        self.sources: list[tuple] = []
        self.written: list[Tensor] = []

    def source(self, tensor: object, key: str | None = None) -> int:
        self.sources.append((tensor, key))
        return len(self.sources) - 1

    def tensor(self, tensor: Tensor | None) -> int:
        if tensor is None:
            return -1
        self.written.append(tensor)
        return self.source(tensor)

    def network(
        self, chain: plan.Chain, optimizer: torch.optim.Optimizer, averages: dict[Tensor, Tensor]
    ) -> None:
        group = optimizer.param_groups[0]
        self.reals += [*group["betas"], group["eps"], group["weight_decay"]]
        parameters = [p for layer in chain.layers for p in layer.parameters if p is not None]
        for p in parameters:
            _start(optimizer, p)
        steps = [self.source((optimizer.state, p), "step") for p in parameters]
        self.integers += [int(_decoupled(optimizer)), len(steps), *steps, len(chain.layers)]
        for layer in chain.layers:
            drop, norm = layer.dropout, layer.norm
            threshold = 0 if drop is None else round((1.0 - drop.p) * 65536)
            self.integers += [
                layer.linear.out_features,
                plan.ACTIVATIONS.index(layer.activation),
                int(norm is not None),
                int(drop is not None),
                threshold,
                layer.dropout_index,
            ]
            momentum = -1.0 if norm is None or norm.momentum is None else norm.momentum
            self.reals += [layer.slope, 0.0 if norm is None else norm.eps, momentum]
            for p in layer.parameters:
                if p is None:
                    self.integers += [-1] * 4
                    continue
                state = (optimizer.state, p)
                self.integers += [
                    self.tensor(p),
                    self.source(state, "exp_avg"),
                    self.source(state, "exp_avg_sq"),
                    self.tensor(averages.get(p)),
                ]
            if norm is None or norm.running_mean is None:
                self.integers += [-1] * 6
                continue
            kept = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
            self.integers += [self.tensor(t) for t in kept]
            self.integers += [self.tensor(averages.get(t)) for t in kept]


def _widths(chain: plan.Chain) -> list[int]:
    return [layer.linear.out_features for layer in chain.layers]


def _decoupled(optimizer: torch.optim.Optimizer) -> bool:
    return isinstance(optimizer, torch.optim.AdamW)


def _start(optimizer: torch.optim.Optimizer, p: Tensor) -> None:
    """A parameter's optimiser state as torch makes it at the first step."""
    state = optimizer.state[p]
    if not state:
        group = optimizer.param_groups[0]
        device = p.device if group.get("capturable") or group.get("fused") else "cpu"
        state["step"] = torch.zeros((), dtype=torch.float32, device=device)
        state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)


def _zeros(size: int) -> Tensor:
    """uint8 [size], zeros; on huge pages, where there are any, as a step walks over all of it."""
    flags = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
    if not flags:
        return torch.zeros(size, dtype=torch.uint8)
    area = mmap.mmap(-1, size, flags=flags)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them: slower by a few per cent
            area.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(area, dtype=torch.uint8)


def _kinds(problem: Problem) -> tuple:
    """What decides whether there is a plan, besides the networks; a change asks anew."""
    p = problem
    groups = [*p.optimizer_g.param_groups, *p.optimizer_d.param_groups]
    return (
        *(p.generator, p.discriminator, p.optimizer_g, p.optimizer_d),
        *(p.data, p.batch_size, p.latent_shape, p.precision, p.game, p.penalty, p.ema, p.device),
        *(group.get(option) for group in groups for option in _OPTIONS),
    )


def _settings(problem: Problem) -> tuple:
    """What the plan is written from, besides the networks; a change makes a new plan."""
    p = problem
    numbers = []
    for optimizer in (p.optimizer_g, p.optimizer_d):
        numbers += [group[number] for group in optimizer.param_groups for number in _NUMBERS]
        numbers += [len(optimizer.state), id(optimizer.state)]
    averages = [] if p.ema is None else [*p.ema.parameters(), *p.ema.buffers()]
    return (p.d_steps, p.seed, p.ema_decay, *numbers, *map(id, averages))


def _averages(problem: Problem) -> dict[Tensor, Tensor]:
    """The averaged copy of each of G's parameters and buffers."""
    if problem.ema is None:
        return {}
    g, ema = problem.generator, problem.ema
    return dict(
        zip([*g.parameters(), *g.buffers()], [*ema.parameters(), *ema.buffers()], strict=True)
    )


def _read(problem: Problem) -> tuple[plan.Chain, plan.Chain]:
    """The two chains of a problem that the engine can run; NoPlan with the reason otherwise."""
    p = problem
    if p.device.type not in ("cpu", "cuda"):
        raise plan.NoPlan(f"it runs on the CPU and on CUDA, and the device is {p.device}")
    if p.device.type == "cuda" and not torch.cuda.is_available():
        raise plan.NoPlan(f"the device is {p.device}, and torch finds no GPU")
    if not ops.has_kernels(p.device):
        raise plan.NoPlan(
            f"the device is {p.device}, and the compiled {p.device.type.upper()} library is not "
            "available (see `fastgan info`)"
        )
    if p.device.type == "cuda" and torch.cuda.get_device_capability(p.device) < (8, 0):
        raise plan.NoPlan("it needs a GPU of compute capability 8.0 or newer")
    if p.precision == "fp16":
        raise plan.NoPlan("precision 'fp16' has no fused form; 'fp32' and 'bf16' have")
    if p.penalty is not None:
        raise plan.NoPlan(
            f"penalty {p.penalty.name!r} differentiates a gradient, which has no fused form"
        )
    _check_game(p)
    g = plan.read(p.generator, "generator", p.latent_shape, p.device)
    d = plan.read(p.discriminator, "discriminator", tuple(p.data.shape), p.device)
    if p.game.takes_sigmoid:
        plan.absorb_sigmoid(d)
    last = d.layers[-1]
    if last.linear.out_features != 1:
        raise plan.NoPlan(
            f"{last.name}: the last layer has {last.linear.out_features} outputs, not 1"
        )
    if last.norm is not None or last.dropout is not None:
        what = "BatchNorm1d" if last.norm is not None else "Dropout"
        raise plan.NoPlan(f"{last.name}: {what} on the logits has no fused form")
    image = d.layers[0].linear.in_features
    if g.layers[-1].linear.out_features != image:
        raise plan.NoPlan(
            f"generator makes {g.layers[-1].linear.out_features} values, "
            f"and the images have {image}"
        )
    shared = {id(x) for c in (g,) for layer in c.layers for x in layer.parameters if x is not None}
    for layer in d.layers:
        if any(id(x) in shared for x in layer.parameters):
            raise plan.NoPlan(f"{layer.name}: shares a parameter with the generator")
    short = len(p.data) % p.batch_size or p.batch_size
    if min(short, p.batch_size, len(p.data)) == 1 and any(
        layer.norm is not None for c in (g, d) for layer in c.layers
    ):
        raise plan.NoPlan("BatchNorm1d cannot train on an epoch's last batch of 1 image")
    _check_optimizer(p.optimizer_g, g, "optimizer_g")
    _check_optimizer(p.optimizer_d, d, "optimizer_d")
    _check_average(p)
    return g, d


def _check_game(problem: Problem) -> None:
    game = problem.game
    known = GAMES.get(game.name)
    if known is None or game.name not in GAME_NUMBERS:
        raise plan.NoPlan(f"the game {game.name!r} has no fused form")
    smoothed = known.d_loss
    if isinstance(known.d_loss, _MinimaxD):
        smoothed = _MinimaxD(1.0 - game.label_smoothing)
    if game.d_loss != smoothed or game.g_loss is not known.g_loss:
        raise plan.NoPlan(f"the game {game.name!r} has losses of its own, which have no fused form")


def _check_optimizer(optimizer: torch.optim.Optimizer, chain: plan.Chain, name: str) -> None:
    # fastgan.optim's two compute the same values; any other subclass may not.
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW) or type(
        optimizer
    ).__module__.split(".")[0] not in ("torch", "fastgan"):
        raise plan.NoPlan(
            f"{name}: {type(optimizer).__name__} has no fused form; Adam and AdamW have"
        )
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise plan.NoPlan(f"{name}: its step hooks would not be called")
    for group in optimizer.param_groups:
        for option in _OPTIONS:
            # On a GPU capturable only says where the counter of steps is.
            on_gpu = chain.layers[0].linear.weight.is_cuda
            if group.get(option) and not (on_gpu and option == "capturable"):
                raise plan.NoPlan(f"{name}: {option}=True has no fused form")
        if any(isinstance(beta, Tensor) for beta in group["betas"]):
            raise plan.NoPlan(f"{name}: a tensor as a beta has no fused form")
    _alike(optimizer, name, "lr", *_NUMBERS)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    counts = set()
    for layer in chain.layers:
        for p in layer.parameters:
            if p is None:
                continue
            if id(p) not in held:
                raise plan.NoPlan(f"{layer.name}: {name} does not train all of its parameters")
            state = optimizer.state.get(p)
            if not state:
                counts.add(0.0)
                continue
            counts.add(float(state["step"]))
            moments = (state["exp_avg"], state["exp_avg_sq"])
            if state["step"].dtype != torch.float32 or any(
                m.dtype != torch.float32 or not m.is_contiguous() for m in moments
            ):
                raise plan.NoPlan(f"{name}: the state of {layer.name} is not contiguous float32")
    if len(counts) > 1:
        raise plan.NoPlan(f"{name}: its parameters have taken different numbers of steps")


def _alike(optimizer: torch.optim.Optimizer, name: str, *options: str) -> None:
    first, *others = optimizer.param_groups
    for option in options:
        if any(group[option] != first[option] for group in others):
            raise plan.NoPlan(
                f"{name}: parameter groups that differ in {option} have no fused form"
            )


def _rate(optimizer: torch.optim.Optimizer, name: str) -> float:
    """The learning rate of all of an optimiser's groups."""
    if len(optimizer.param_groups) > 1:
        _alike(optimizer, name, "lr")
    return float(optimizer.param_groups[0]["lr"])


def _check_average(problem: Problem) -> None:
    if problem.ema is None:
        return
    try:
        pairs = _averages(problem).items()
    except ValueError:
        raise plan.NoPlan("ema: is not a copy of the generator") from None
    for own, average in pairs:
        if own.shape != average.shape or own.dtype != average.dtype or not average.is_contiguous():
            raise plan.NoPlan("ema: is not a contiguous copy of the generator")
        if not plan.on(average, problem.device):
            raise plan.NoPlan(f"ema: is on {average.device}")
