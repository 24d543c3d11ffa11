"""Recording work on a CUDA device to replay it, and saying what stood in the way.

The rules are those of https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs: work is
warmed up and captured on one side stream, all captures of a recorder share one memory pool (nothing
that lives in it is read after a replay), and an operation that waits for the device cannot be
captured.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import nn

from fastgan import torch_private
from fastgan.engines.probe import first_line, undisturbed

Work = Callable[[], object]


class CudaRecorder:
    """Captures work as CUDA graphs.

    The seam between an engine and the device: `GraphEngine` needs nothing else that is CUDA's own.

    Give up all of its recordings or none: with any graph, PyTorch frees the cuBLAS workspace of the
    stream, which the others were recorded with (pytorch#193402).
    """

    def __init__(self, device: torch.device, generators: list[torch.Generator]):
        """`generators`: those on the device that the work may draw from, besides torch's own."""
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        self._generators = generators
        self._stream = torch.cuda.Stream(self.device)
        self._pool = torch.cuda.graph_pool_handle()
        self._alive: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    @contextmanager
    def here(self) -> Iterator[None]:
        """The device is the current one, and the problem's precision counts, not the caller's."""
        with torch.cuda.device(self.device), undisturbed(self.device):
            yield

    def aside(self, work: Work) -> None:
        """Do the work on the side stream, between what the current stream does before and after.

        Where autograd accumulates gradients is settled by the stream that a parameter is first used
        on, for as long as anything holds on to the result; a capture fails if that is another one.
        """
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                work()
        finally:
            # Also after an error: what is put back then must not be overtaken.
            current.wait_stream(self._stream)

    def warm_up(self, work: Work) -> None:
        """Do the work once on the side stream, and once more with an error where it waits."""
        self.aside(work)
        self._without_waiting(work)

    def capture(self, work: Work) -> Work:
        """Record the work without doing it; returns what replays it, on the current stream."""
        if not self._alive:
            # A pool ends with its last graph, but while something captured is still held its handle
            # stays known, and may not be used again.
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        if not torch_private.graphs_tidy_up():
            for generator in self._generators:
                graph.register_generator_state(generator)
        failure: BaseException | None = None
        try:
            # The outer context puts the current stream back where capture_end raises.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                # A loader's thread may pin memory meanwhile, which "global" would forbid.
                torch.cuda.graph(
                    graph,
                    pool=self._pool,
                    stream=self._stream,
                    capture_error_mode="thread_local",
                ),
            ):
                try:
                    work()
                except BaseException as error:
                    # Ctrl-C too: ending a capture that it broke off would put its own error first.
                    failure = error
        except Exception as error:
            failure = failure or error
        if failure is not None:
            self._recover(graph)
            raise failure
        self._alive.add(graph)
        return graph.replay

    def provoke(self, work: Work) -> None:
        """Do the work in the ways in which it may have failed, until one of them raises."""
        self._without_waiting(work)
        self.capture(work)

    def _without_waiting(self, work: Work) -> None:
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            self.aside(work)
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def _recover(self, graph: torch.cuda.CUDAGraph) -> None:
        # A capture that was broken off leaves the allocator and the generators believing that it
        # goes on; which of them depends on the version of torch.
        pool, self._pool = self._pool, torch.cuda.graph_pool_handle()
        claimed = not torch_private.graphs_tidy_up() and not _ended(graph)
        # In this order: newer versions end it in reset(), which fails where that was done before.
        with suppress(RuntimeError):
            graph.reset()
        with suppress(RuntimeError, AttributeError):
            torch_private.end_allocation_to_pool(self.device.index, pool)
        # Else all that the capture has allocated stays reserved until the process ends.
        if claimed:
            with suppress(RuntimeError, AttributeError):
                torch_private.release_pool(self.device.index, pool)
        probe = torch.empty(1, device=self.device)
        for generator in (torch.cuda.default_generators[self.device.index], *self._generators):
            state = generator.get_state()
            try:
                probe.uniform_(generator=generator)
                generator.set_state(state)
            except RuntimeError:
                generator.graphsafe_set_state(generator.clone_state())


def _ended(graph: torch.cuda.CUDAGraph) -> bool:
    """Whether a graph's capture came to its end, and not only to an error."""
    try:
        graph.pool()
    except RuntimeError:
        return False
    return True


class Watch(torch_private.OperationMode):
    """Remembers which operation was the last to begin, and inside which module."""

    def __init__(self, **networks: nn.Module):
        """Networks by the names that their modules are told by."""
        super().__init__()
        self._names = {
            m: f"{name}.{path}" if path else name
            for name, network in networks.items()
            for path, m in network.named_modules()
        }
        self._inside: list[str] = []
        self._handles: list = []
        self._operation: str | None = None

    def over(self, work: Work) -> Work:
        """The work, watched while it is done and not in what a recorder does around it."""

        def watched() -> None:
            with self:
                work()

        return watched

    def __enter__(self):
        """Begin anew, and follow the passes too."""
        self._inside.clear()
        self._operation = None
        for m, name in self._names.items():
            self._handles += [
                m.register_forward_pre_hook(lambda m, _, name=name: self._enter(name)),
                # Not called where the pass fails: the innermost module stays on top.
                m.register_forward_hook(lambda *_: self._inside.pop() and None),
            ]
        return super().__enter__()

    def __exit__(self, *exception):
        """Leave the modules as they were."""
        while self._handles:
            self._handles.pop().remove()
        return super().__exit__(*exception)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Note the operation and do it."""
        if func.namespace != "profiler":  # what marks the end of a failed block is no operation
            self._operation = func.name()
        return func(*args, **(kwargs or {}))

    def told(self, error: Exception, how: str = "captured") -> str:
        """What failed, where, and with which words."""
        where = self._inside[-1] if self._inside else "what lies outside of both networks' passes"
        # Python code may fail after an operation, hence "at or after".
        at = f"at or after {self._operation}" if self._operation else "before any operation"
        return f"{where} cannot be {how}, {at} ({first_line(error)})"

    def _enter(self, name: str) -> None:
        self._inside.append(name)
        self._operation = None
