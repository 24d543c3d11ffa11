"""What the peers written in PyTorch share: the device, the precision asked for, and its clock."""

from __future__ import annotations

import contextlib
import gc
import re
import time

import gpu
import torch

from peers import Peer, Unavailable

MOST_KERNELS = 24


class TorchPeer(Peer):
    """Option ``precision``: with "tf32" a GPU may round the operands of float32 products."""

    autocast = staticmethod(contextlib.nullcontext)

    @classmethod
    def available(cls, device="cpu"):
        if device == "cuda" and not torch.cuda.is_available():
            return f"torch {torch.__version__} finds no GPU"
        return None

    def begin(self, threads: int) -> None:
        """What a setup does first."""
        torch.set_num_threads(threads)
        tf32 = self.options.get("precision") == "tf32"
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        if self.device == "cuda":
            torch.backends.cudnn.allow_tf32 = tf32
            torch.backends.cudnn.benchmark = True

    def block(self, n: int, calls: int = 1) -> float:
        if self.device != "cuda":
            return super().block(n, calls)
        torch.cuda.synchronize()
        start = time.perf_counter()
        events = gpu.between_events(lambda: self.run(n), calls)
        torch.cuda.synchronize()
        wall = time.perf_counter() - start
        # Work on another stream, or of the host after the last launch, lies outside the events.
        return events if events > 0.95 * wall - 1e-4 else wall

    def profile(self, steps: int) -> list[tuple[str, float, float, float]]:
        """On a GPU, the kernels of a step; see `kernels_of_a_step`."""
        if self.device != "cuda":
            raise Unavailable("this peer has no profile")
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            self.run(steps)
            torch.cuda.synchronize()
        return kernels_of_a_step(
            [
                (event.name, event.time_range.start, event.time_range.end)
                for event in seen.events()
                if event.device_type == torch.autograd.DeviceType.CUDA
            ],
            steps,
        )

    def close(self) -> None:
        if self.device == "cuda":
            # The next plan's peer is built before Python collects this one.
            vars(self).clear()
            gc.collect()
            torch.cuda.empty_cache()


def kernels_of_a_step(
    spans: list[tuple[str, float, float]], steps: int
) -> list[tuple[str, float, float, float]]:
    """Kernels as the phases of a step, the longest first, and what the device did between them.

    Args:
        spans: (name, begin, end) of everything that ran, microseconds.
        steps: how many steps that was.

    Returns:
        (name and times a step, 0, seconds a step, 0) for each kernel; of more than MOST_KERNELS the
        rest in one. The last row is the time in which nothing ran.
    """
    spent: dict[str, list[float]] = {}
    idle, busy_until = 0.0, min((begin for _, begin, _ in spans), default=0.0)
    for name, begin, end in sorted(spans, key=lambda span: span[1]):
        idle += max(0.0, begin - busy_until)
        busy_until = max(busy_until, end)
        spent.setdefault(name, []).append(end - begin)
    order = sorted(spent, key=lambda name: -sum(spent[name]))
    named, rest = order[:MOST_KERNELS], [t for name in order[MOST_KERNELS:] for t in spent[name]]
    rows = [(_short(name), spent[name]) for name in named] + [("other kernels", rest)] * bool(rest)
    return [
        *((f"{n} x {len(t) / steps:g}", 0.0, sum(t) / steps / 1e6, 0.0) for n, t in rows),
        ("nothing runs", 0.0, idle / steps / 1e6, 0.0),
    ]


def _short(name: str) -> str:
    """A kernel's name without its return type, namespaces and arguments."""
    name = re.sub(r"\(anonymous namespace\)::", "", name).removeprefix("void ")
    head = re.split(r"[<(]", name)[0].split("::")[-1]
    return (head or name)[:60]
