"""Compiled updates inside recorded steps: what the engine `compile` is on CUDA."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fastgan.engines import kept
from fastgan.engines.base import CannotRun
from fastgan.engines.compile import CompileEngine, unsupported_parts
from fastgan.engines.compiled_step import CompiledStep
from fastgan.engines.device_step import DeviceStep
from fastgan.engines.graph import GraphEngine
from fastgan.engines.noted_draws import NotedDeviceDraws

if TYPE_CHECKING:
    from fastgan.problem import Problem


class CompiledDeviceStep(DeviceStep):
    """Steps over static buffers whose losses and gradients are compiled functions."""

    _step, _device = CompiledStep, NotedDeviceDraws
    step: CompiledStep


class CompiledGraphEngine(GraphEngine):
    """Runs any pair of modules on CUDA by replaying graphs of steps that are compiled.

    The compiler makes fewer kernels of a pass, and the recording leaves the host out of launching
    them. What `CompileEngine` and `GraphEngine` ask of modules and optimisers is asked here.
    """

    name = "compile"
    _device_step = CompiledDeviceStep
    _body: CompiledDeviceStep

    @classmethod
    def unsupported(cls, problem: Problem) -> str | None:
        """The reason why the problem cannot be compiled or replayed, without trying."""
        return CompileEngine.unsupported(problem) or super().unsupported(problem)

    def describe(self) -> str:
        """One line that says which path is taken."""
        return f"{super().describe()}, {self._body.step.said(self._seconds, self.step)}"

    def _restart(self) -> None:
        super()._restart()
        if reason := unsupported_parts(self.problem):
            raise CannotRun(reason)

    def _made_ready(self) -> None:
        """Compile before the first step all that a run has."""
        p, step = self.problem, self._body.step
        if step.functions:
            return

        def compile_() -> None:
            with step.in_place():
                step.prepare(self.step)

        since = time.perf_counter()
        self._recorder.aside(compile_)
        self._seconds = time.perf_counter() - since
        kept.remember(p, kept.Measured(*step.milliseconds(self.step), self._seconds))
