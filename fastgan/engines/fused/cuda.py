"""The fused engine on CUDA: whole steps of two multilayer perceptrons as a few kernels, or as one.

Two programs do the same steps. The chain takes one kernel for each phase of a step; a CUDA graph of
it is captured once and replayed, because its kernels read the number of the step from the device.
The persistent kernel does many steps in one launch, of one run or of several side by side, and
keeps the weights and their moments on chip meanwhile. Which of them runs is a matter of shapes;
`describe` says which, and why not the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

from fastgan import torch_private
from fastgan.engines import gangs
from fastgan.engines.capture import CudaRecorder, Work
from fastgan.engines.draws import batch_of
from fastgan.engines.fused.chain import Chain
from fastgan.engines.fused.cpu import KEPT_ORDER, FusedEngine
from fastgan.engines.fused.encode import samples_per_epoch
from fastgan.engines.gangs import Gang
from fastgan.engines.scores import batch_sizes
from fastgan.statistics import STATISTICS, table

_ROWS = 4096
"""Steps that the tables of losses and learning rates have room for: what bounds a launch."""

_GRAPH_STEPS = 16
"""Steps in a captured graph; what is left over goes through a graph of one step."""


class FusedCudaEngine(FusedEngine):
    """Runs a pair of MLPs on a CUDA device, any number of steps per call.

    What fits is what `FusedEngine` takes; penalties and bounds are the chain's. Products are taken
    in float32, in TF32 where `torch.backends.cuda.matmul.fp32_precision` says so (torch's older
    settings set it as well), or in bfloat16 with precision "bf16"; sums, weights and everything
    else are float32. The same run gives the same bits.

    Attributes:
        allow_persistent: whether the persistent kernel may be chosen; set it to False on the class,
            before an engine is made, to compare the two programs.
    """

    allow_persistent = True
    measures = False
    _stamps: Tensor | None = None

    def describe(self) -> str:
        """Shapes, precision, program and working memory in one line."""
        p = self.problem
        products = "fp32 with TF32 products" if self._tf32() else p.precision
        if self._why_chain:
            kernels = torch.ops.fastgan.fused_cuda_length(*self._plan[:2])
            program = f"graphs of {kernels} kernels a step (not one kernel: {self._why_chain})"
        else:
            program = "one persistent kernel"
        return (
            f"whole steps on the GPU, {self._shapes()}, {products}, {program}, "
            f"{self.memory_bytes() / 2**20:.1f} MB of working memory"
        )

    def memory_bytes(self) -> int:
        """Bytes the engine holds besides the networks, their optimisers and the images."""
        tables = (self._memory, self._rate_table, self._table, self._order_table)
        return sum(t.numel() * t.element_size() for t in tables)

    @property
    def persistent(self) -> bool:
        """Whether one kernel carries out the steps, and not a graph of the chain."""
        return not self._why_chain

    @property
    def beside(self) -> bool:
        """Whether others can step in the same launch, which the persistent kernel alone can do."""
        return self.persistent

    @property
    def company(self) -> tuple | None:
        """Device and precision: what one launch has one of."""
        return (self.problem.device, self.problem.precision) if self.persistent else None

    @property
    def most_at_once(self) -> int:
        """How many runs like this one a launch takes: each needs its weights on chip."""
        return torch.ops.fastgan.fused_cuda_most_at_once(*self._plan[:3], self._clock, self._tf32())

    def gang(self, runs: int) -> Gang:
        """What launches so many runs together, on the stream of now; one precision is all's."""
        device = self.problem.device
        here: Callable[[], AbstractContextManager] = nullcontext
        if device.type == "cuda":
            # A new thread has the first device and its default stream.
            stream = torch.cuda.current_stream(device)
            here = partial(torch.cuda.stream, stream)
        return Gang(runs, lambda jobs, n: _launch_together(jobs, n, self._tf32()), here)

    def profile(self, n: int) -> list[tuple[str, float, float, float]]:
        """Do n steps of the persistent kernel and time them by its own clock.

        Returns:
            what `FusedEngine.profile` does. A phase ends when the first block has met all others,
            so that its seconds have the waiting in them, and the last number is 0.

        Raises:
            ValueError: the engine runs the chain, whose kernels are timed from outside.
        """
        p = self.problem
        self._check_profile(n)
        if not self.persistent:
            raise ValueError(
                "profile() reads the clock of the persistent kernel, and this engine runs a kernel "
                f"a phase ({self._why_chain}); time those with torch.profiler or nsys"
            )
        lines = torch.ops.fastgan.fused_cuda_phases(*self._plan[:2]).splitlines()
        phases = [(name, float(work)) for work, name in (line.split(" ", 1) for line in lines)]
        of_g = sum(name.startswith("G's") for name, _ in phases)
        a_step = p.d_steps * (len(phases) - of_g) + of_g
        spent = torch.zeros(len(phases), dtype=torch.float64, device="cpu")
        done = 0
        while done < n:
            order, count = self._order(min(n - done, self._rows))
            self._stamps = torch.zeros(count * a_step + 3, dtype=torch.int64, device=p.device)
            try:
                self._run(p.data.samples, order, count, table(count, p.device))
                stamps = self._stamps.cpu()
            finally:
                self._stamps = None
            clock = stamps[1:-1].double()
            seconds = (stamps[-1] - stamps[0]) / 1e9 / (clock[-1] - clock[0]).clamp(min=1)
            steps = (clock.diff() * seconds).view(count, a_step)
            of_d = steps[:, : a_step - of_g].view(count, p.d_steps, -1).sum(1)
            spent += torch.cat([of_d, steps[:, a_step - of_g :]], 1).sum(0)
            done += count
        return [
            (name, work * (1 if name.startswith("G's") else p.d_steps), took / n, 0.0)
            for (name, work), took in zip(phases, spent.tolist(), strict=True)
        ]

    def close(self) -> None:
        """Give the working memory back."""
        super().close()
        self._graphs.clear()
        self._taken = None  # the next run lays everything out anew

    def _tf32(self) -> bool:
        # By this name: the older one raises where a program has used the newer.
        tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
        return self.problem.precision == "fp32" and tf32

    def _wake(self) -> None:
        """A GPU has no threads that sleep."""

    def _lay_out(self) -> None:
        """The tables and the memory of a plan; the list of tensors goes to the kernels."""
        p = self.problem
        count, per_epoch = samples_per_epoch(p), p.batches_per_epoch
        epochs = max(1, KEPT_ORDER // count - 1)
        self._rows = min(_ROWS, max(1, epochs * per_epoch // p.d_steps))
        # Steps may begin and end inside an epoch.
        epochs = -(-self._rows * p.d_steps // per_epoch) + 1

        def buffer(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=p.device)

        self._clock = buffer(5, dtype=torch.int64)
        self._rate_table = buffer(self._rows, 2, dtype=torch.float64)
        self._table = buffer(self._rows, len(STATISTICS), dtype=torch.float32)
        self._order_table = buffer(epochs * count if p.data.resident else 0, dtype=torch.int64)
        self._why_chain = "allow_persistent is False"
        if self.allow_persistent:
            self._why_chain = torch.ops.fastgan.fused_cuda_why_not_persistent(
                *self._plan[:3], self._clock, self._tf32()
            )
        size = torch.ops.fastgan.fused_cuda_memory(*self._plan[:2], 1 if self._why_chain else 2)
        memory = buffer(size + 256, dtype=torch.uint8)
        start = -memory.data_ptr() % 256
        self._memory = memory[start : start + size]
        self._feed = None
        self._graphs: dict[int, Work] = {}
        self._pointers: tuple = ()
        # Updates that an optimiser has done, by its first step counter and that one's version.
        self._counted: dict[int, tuple[Tensor, int, int]] = {}

    def _fed(self) -> Tensor:
        """The batches of one step, each where the kernels look for it."""
        p = self.problem
        if self._feed is None:
            size = (p.d_steps, batch_sizes(p)[0], *p.data.shape)
            self._feed = torch.zeros(size, dtype=torch.float32, device=p.device)
        first = self.step * p.d_steps
        for place, update in zip(self._feed, range(first, first + p.d_steps), strict=True):
            batch = batch_of(p, update).images
            place[: len(batch)].copy_(batch)
        return self._feed

    def _run(
        self,
        images: Tensor,
        order: Tensor | None,
        n: int,
        statistics: Tensor,
        profile: Tensor | None = None,
    ) -> None:
        first = self._epoch()
        for start in range(0, n, self._rows):
            part = statistics[start : start + self._rows]
            rates = self._learning_rates(len(part))
            if order is not None:
                rest = order[(self._epoch() - first) * samples_per_epoch(self.problem) :]
                rest = rest[: len(self._order_table)]
                self._order_table[: len(rest)].copy_(rest)
            self._chunk(images, order is not None, rates, part)

    def _epoch(self) -> int:
        p = self.problem
        return self.step * p.d_steps // p.batches_per_epoch

    def _chunk(self, images: Tensor, ordered: bool, rates: Tensor, statistics: Tensor) -> None:
        p, n = self.problem, len(statistics)
        pairs = (
            (self._d, p.optimizer_d, n * p.d_steps),
            (self._g, p.optimizer_g, n * p.g_steps),
        )
        steps = [self._step_counters(chain, optimizer) for chain, optimizer, _ in pairs]
        done = [self._updates(counters[0]) for counters in steps]
        # From pageable memory, so the host may go on and forget them as soon as the calls return.
        clock = torch.tensor(
            [self.step, self.step, self._epoch(), *done], dtype=torch.int64, device="cpu"
        )
        self._clock.copy_(clock, non_blocking=True)
        self._rate_table[:n].copy_(rates.expand(n, 2), non_blocking=True)
        self._launch(images, ordered, n)
        statistics.copy_(self._table[:n])
        for counters, before, (_, _, more) in zip(steps, done, pairs, strict=True):
            torch_private.add_to_all(counters, float(more))
            first = counters[0]
            self._counted[id(first)] = (first, first._version, before + more)
        # What autograd has saved of these before is out of date now, and must say so.
        torch.autograd.graph.increment_version(self._plan.written)
        self.step += n

    @staticmethod
    def _step_counters(chain: Chain, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        return [optimizer.state[p]["step"] for p in chain.parameters]

    def _updates(self, counter: Tensor) -> int:
        """What an optimiser's step counter says; one on the GPU is read only after a change."""
        known = self._counted.get(id(counter))
        if known is not None and known[0] is counter and known[1] == counter._version:
            return known[2]
        return int(counter)

    def _launch(self, images: Tensor, ordered: bool, n: int) -> None:
        if not self._why_chain:
            gang = gangs.mine()
            if gang is None or not ordered:
                self._enqueue(images, ordered, n)
            else:
                gang.steps(self._job(images), n)
            return
        pointers = (images.data_ptr(), images.dtype, ordered, self._tf32(), id(self._plan))
        if pointers != self._pointers:
            self._graphs.clear()
            self._recorder = CudaRecorder(images.device, [])
            self._pointers = pointers
            # Kernels are loaded at their first launch, which a capture does not allow.
            self._enqueue(images, ordered, 1)
            n -= 1
        for size in (_GRAPH_STEPS, 1):
            if n >= size and size not in self._graphs:
                with self._recorder.here():
                    self._graphs[size] = self._recorder.capture(
                        lambda size=size: self._enqueue(images, ordered, size)
                    )
            for _ in range(n // size):
                self._graphs[size]()
            n %= size

    def _job(self, images: Tensor) -> tuple[Tensor | list[Tensor], ...]:
        """What a launch of several runs is told of this one."""
        tables = self._order_table, self._clock, self._rate_table, self._table
        return *self._plan[:3], self._memory, images, *tables

    def _enqueue(self, images: Tensor, ordered: bool, steps: int) -> None:
        torch.ops.fastgan.fused_cuda_run.default(
            *self._plan[:3],
            self._memory,
            images,
            self._order_table if ordered else None,
            self._clock,
            self._rate_table,
            self._table,
            self._stamps,
            steps,
            self._tf32(),
            not self._why_chain,
        )


def _launch_together(jobs: Sequence[tuple], steps: int, tf32: bool) -> None:
    plans, settings, states, *rest = zip(*jobs, strict=True)
    torch.ops.fastgan.fused_cuda_run_together.default(
        plans,
        settings,
        [tensor for state in states for tensor in state],
        [len(state) for state in states],
        *rest,
        steps,
        tf32,
    )
