"""The compile engine: the updates of any two modules as functions made by torch's compiler."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastgan import torch_private
from fastgan.engines import convolutions, kept, sync_norm
from fastgan.engines.base import CannotRun
from fastgan.engines.compiled_step import CompiledStep
from fastgan.engines.eager import EagerEngine
from fastgan.engines.noted_draws import NotedDraws
from fastgan.engines.probe import undisturbed
from fastgan.engines.rehearsal import hooked, own_state
from fastgan.engines.snapshot import Snapshot
from fastgan.terms import ADAPTIVE

if TYPE_CHECKING:
    from fastgan.problem import Problem

logger = logging.getLogger("fastgan")


class CompileEngine(EagerEngine):
    """Runs any pair of modules with TorchInductor, on the CPU and on CUDA.

    Updates whose convolutions are taken by fastgan's operators, on the CPU, are traced and not
    compiled: see `fastgan.engines.recorded`.

    On CUDA whole steps of it are recorded where the engine `graph` could record them; see
    `CompiledGraphEngine`.

    Each kind of update (of a size, with or without a lazy penalty) is traced once, gradients and
    penalties included, and compiled before the first step: nothing is compiled in the loop. A
    function is used if it returns, on the first draws, what autograd returns; parameters are moved
    by the optimiser, as in `eager`. What is compiled is kept between runs, see
    `fastgan.engines.kept`.

    The modules must do the same work in every pass, as for the engine `graph`: no value that the
    host reads, no attribute that a pass assigns, no hook. What the user changes in modules and
    optimisers between two runs is noticed (see `Snapshot`), and compiled anew.
    """

    name = "compile"
    _step, _host = CompiledStep, NotedDraws
    _not_recorded: str | None = None

    def __new__(cls, problem: Problem):
        """The engine; where its steps are recorded, that of compiled_graph.py, made already."""
        engine = super().__new__(cls)
        if cls is CompileEngine:
            from fastgan.engines.compiled_graph import CompiledGraphEngine

            engine._not_recorded = CompiledGraphEngine.unsupported(problem)
            if engine._not_recorded is None:
                try:
                    return CompiledGraphEngine(problem)
                except CannotRun as reason:
                    engine._not_recorded = str(reason)
                    logger.warning("engine compile: steps are not recorded: %s", reason)
        return engine

    def __init__(self, problem: Problem):
        """Compile, leaving no trace in the networks.

        Raises:
            CannotRun: something cannot be traced or compiled; the message says what.
        """
        super().__init__(problem)
        self._restart()

    @classmethod
    def unsupported(cls, problem: Problem) -> str | None:
        """The reason why the problem cannot be compiled, as far as it shows without trying."""
        p = problem
        if p.divided:
            return "fully_shard gathers and frees weights within a pass"
        # Updates whose convolutions are fastgan's need no compiler; whether they are shows later.
        lacks = None if convolutions.may_take(p) else _no_compiler(p.device)
        if reason := lacks or unsupported_parts(p):
            return reason
        if p.precision == "fp16":
            return "precision 'fp16' scales losses by what it learns; use 'bf16' or 'fp32'"
        for name, usual in (("accumulate", 1), ("d_start", 0), ("g_start", 0)):
            if (value := getattr(p.config, name)) != usual:
                return f"{name}={value}: it counts on whole updates of both networks in every step"
        if p.world.size > 1:
            if any(sync_norm.layers(m) for m in (p.generator, p.discriminator)):
                return "BatchNorm layers sum over the ranks within a pass"
            if any(term.weight == ADAPTIVE for term in p.terms):
                return "an adaptive weight sums over the ranks within an update"
        return None

    def describe(self) -> str:
        """One line that says which path is taken."""
        parts = [self._once.said(self._seconds, self.step), *self._once.describe()]
        if self.problem.device.type == "cuda":
            parts.append(f"step by step (not recorded: {self._not_recorded})")
        return ", ".join(parts)

    def run(self, n: int) -> Tensor:
        """Do n steps; see `Engine.run`."""
        if n >= 0:
            self.unreported = self._table([])
            if self._seen_last is None or self._seen_last.difference() is not None:
                self._restart()
        return super().run(n)

    def close(self) -> None:
        """Give the functions back; another run makes them again."""
        self._once.functions.clear()
        self._seen_last = None

    def _restart(self) -> None:
        """Compile everything, anew if it was before."""
        p = self.problem
        self._seen_last = None
        self._once.functions.clear()
        if reason := unsupported_parts(p):
            raise CannotRun(reason)
        since = time.perf_counter()
        with undisturbed(p.device), self._once.in_place():
            self._once.prepare(self.step)
        self._seconds = time.perf_counter() - since
        self._seen_last = self._look()
        kept.remember(p, kept.Measured(*self._once.milliseconds(self.step), self._seconds))

    def _look(self) -> Snapshot:
        """All that the functions take for granted."""
        p = self.problem
        return Snapshot(
            {"generator": p.generator, "discriminator": p.discriminator},
            {"optimizer_g": p.optimizer_g, "optimizer_d": p.optimizer_d},
            also=lambda: (
                own_state(p)
                | {
                    "the rounding of products": torch.get_float32_matmul_precision(),
                    "the number of threads": torch.get_num_threads(),
                }
            ),
        )


def _no_compiler(device: torch.device) -> str | None:
    """What TorchInductor lacks on this machine."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "torch's compiler needs triton on CUDA, which is not installed"
        return None
    usual = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    name = os.environ.get("CXX", usual)
    if shutil.which(name) is None:
        return f"torch's compiler needs a C++ compiler, and {name} is not to be found; set CXX"
    return None


def unsupported_parts(problem: Problem) -> str | None:
    """What of the networks cannot be compiled, as far as it shows without trying."""
    p = problem
    for name in ("generator", "discriminator"):
        if any(map(torch_private.is_compiled, getattr(p, name).modules())):
            return f"{name}: a part of it is compiled already; pass it without torch.compile"
    return hooked(p, "tracing")
