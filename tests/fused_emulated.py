"""The fused engine on CUDA in the emulator, and how far two runs are from each other."""

import pytest
import torch
from fused_plans import biases_before_norm, tensors
from native import emulator

from fastgan import ops
from fastgan.engines.fused.cuda import FusedCudaEngine

needs_emulator = pytest.mark.skipif(
    emulator.why_not() is not None or not ops.has_kernels(torch.device("cpu")),
    reason=f"no emulator: {emulator.why_not() or 'the CPU library is not built'}",
)


class Emulated(FusedCudaEngine):
    """On CPU tensors: the operators are the emulator's, and nothing captures a graph."""

    def _lay_out(self):
        super()._lay_out()
        self._memory.fill_(0xFF)  # NaN: nothing may be read before it is written

    def _launch(self, images, ordered, n):
        # In pieces, as replays of graphs are: the clock must carry over.
        for first in range(0, n, 5):
            self._enqueue(images, ordered, min(5, n - first))


class EmulatedChain(Emulated):
    """Without the persistent kernel."""

    allow_persistent = False


def differences(p, q):
    """The relative differences of all that a step changes, but where only rounding is left."""
    skip = set()
    for short, net in (("g", p.generator), ("d", p.discriminator), ("ema", p.generator)):
        for name in biases_before_norm(net):
            # A running mean has the bias before it in it.
            stem, number = name.removesuffix(".bias").rpartition(".")[::2]
            after = f"{stem}.{int(number) + 1}" if stem else str(int(number) + 1)
            skip |= {f"{short}.{name}", f"{short}.{after}.running_mean"}
    a, b = tensors(p), tensors(q)
    assert a.keys() == b.keys()
    found = {}
    for key, value in b.items():
        if any(key == name or key.startswith(name + ".exp_avg") for name in skip):
            continue
        error = (a[key].double() - value.double()).norm() / value.double().norm().clamp(min=1e-12)
        found[key] = error.item()
    return found


def close(p, q, bound):
    worst = max(differences(p, q).items(), key=lambda pair: pair[1])
    assert worst[1] < bound, worst


def off_by(got, expected):
    return ((got - expected).abs() / expected.abs().clamp(min=0.1)).max().item()
