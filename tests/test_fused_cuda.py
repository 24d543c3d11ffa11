"""The fused engine on CUDA: its kernels in the emulator, and where there is a GPU on the GPU."""

import copy
import time

import pytest
import torch
from fused_emulated import Emulated, EmulatedChain, close, differences, needs_emulator, off_by
from fused_networks import mlp
from fused_plans import PLANS, Read, eager_run, problem, same, tensors
from pairs import changed
from torch import nn

from fastgan import data
from fastgan.engines import choose
from fastgan.engines.eager import EagerEngine
from fastgan.engines.fused import FusedEngine
from fastgan.engines.fused.cuda import FusedCudaEngine

pytestmark = pytest.mark.usefixtures("one_thread")
needs_gpu = pytest.mark.gpu(library=True)
REFUSED = ("rows normed", "heads", "uniform, warming", "added", "concatenated", "shared fakes")
TAKEN = [name for name in PLANS if name not in REFUSED]
"""The plans without LayerNorm and heads."""
PLAIN = [name for name in TAKEN if name not in ("deep", "norms", "several of G")]
"""Those without BatchNorm1d and with one update of G, which the persistent kernel takes."""


CASES = [
    pytest.param(kind, name, id=f"{kind.__name__}-{name}")
    for kind in (EmulatedChain, Emulated)
    for name in (TAKEN if kind is EmulatedChain else PLAIN)
    if not name.startswith("reference")
]


@needs_emulator
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_steps_are_those_of_the_cpu(kernels, kind, name):
    p, q = problem(name), problem(name)
    engine = kind(p)
    assert bool(engine._why_chain) == (kind is EmulatedChain)
    got, expected = engine.run(12), FusedEngine(q).run(12)
    assert engine.step == 12
    assert off_by(got, expected) < 1e-4
    close(p, q, 1e-3)


@needs_emulator
@pytest.mark.parametrize(
    ("name", "changes"),
    [("wasserstein", {}), ("hinge", {"penalties": "r1:3:2", "grad_clip": 0.1, "d_steps": 2})],
)
def test_several_updates_of_g_are_the_chains(kernels, name, changes):
    p, q = (problem(name, g_steps=3, **changes) for _ in range(2))
    engine = Emulated(p)
    reason = "it takes no penalties" if changes else "it does one update of G in a step"
    assert reason in engine.describe()
    assert off_by(engine.run(12), FusedEngine(q).run(12)) < 1e-4
    close(p, q, 1e-3)


@needs_emulator
def test_a_layer_norm_is_refused_by_name(kernels):
    with pytest.raises(RuntimeError, match="LayerNorm, which the fused step on CUDA does not know"):
        EmulatedChain(problem("rows normed"))


@needs_emulator
def test_shared_fakes_are_refused_by_name(kernels):
    with pytest.raises(RuntimeError, match="shared_fakes, which the fused step on CUDA does not"):
        EmulatedChain(problem("shared fakes"))


@needs_emulator
@pytest.mark.parametrize("kind", [EmulatedChain, Emulated])
def test_the_reference_pair(kernels, kind):
    kernels.device(80)
    p, q = problem("reference, ragged"), problem("reference, ragged")
    engine = kind(p)
    assert bool(engine._why_chain) == (kind is EmulatedChain)
    got, expected = engine.run(5), eager_run(EagerEngine(q), 5)
    assert off_by(got, expected) < 1e-4
    close(p, q, 1e-3)


@needs_emulator
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("name", ["single layers", "hinge"])
@pytest.mark.parametrize("kind", [EmulatedChain, Emulated])
def test_products_on_tensor_cores(kernels, kind, name, precision):
    # Ten mantissa bits, or seven. Rounding also carries values over ReLU's kink, in "hinge".
    bound = {"tf32": 5e-3, "bf16": 4e-2}[precision]
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    p = problem(name, precision="bf16" if precision == "bf16" else "fp32", lr=1e-5)
    q, exact = problem(name, lr=1e-5), problem(name, lr=1e-5)
    engine = kind(p)
    got, expected = engine.run(3), FusedEngine(q).run(3)
    assert 0 < off_by(got, expected) < bound
    found = differences(p, q)
    moments = {key: error for key, error in found.items() if key.endswith("exp_avg")}
    assert 1e-6 < max(moments.values()) < (5 if name == "hinge" else 1) * bound
    torch.backends.cuda.matmul.allow_tf32 = False
    kind(exact).run(3)
    close(exact, q, 1e-4)


@needs_emulator
@pytest.mark.parametrize("kind", [EmulatedChain, Emulated])
@pytest.mark.parametrize("blocks", [2, 7])
def test_the_order_of_threads_and_the_size_of_the_device_change_no_bit(kernels, kind, blocks):
    name = "wasserstein" if kind is Emulated else "deep"
    p = problem(name)
    expected = kind(p).run(3)
    for seed in (1, 2, 3):
        kernels.seed(seed)
        kernels.device(blocks)
        q = problem(name)
        engine = kind(q)
        assert bool(engine._why_chain) == (kind is EmulatedChain)
        # The kinds of tile follow the size of the device, and the order of a sum with them.
        assert off_by(engine.run(3), expected) < 1e-5
        again = problem(name)
        kernels.seed(seed + 10)
        assert torch.equal(kind(again).run(3), kind(problem(name)).run(3))
        assert same(q, again) == []


def long_pair():
    g = [part for _ in range(9) for part in (nn.Linear(6, 6), nn.ELU())]
    d = [part for n in (9, 5, 8, 7, 6, 5, 4, 3) for part in (nn.LazyLinear(n), nn.Tanh())]
    pair = mlp(*g, nn.Linear(6, 8), nn.Unflatten(1, (1, 2, 4))), mlp(*d, nn.Linear(3, 1))
    pair[1](torch.zeros(1, 8))  # gives the lazy layers their sizes
    return pair


@needs_emulator
def test_more_layers_than_one_launch_updates(kernels, monkeypatch):
    monkeypatch.setitem(PLANS, "long", (long_pair, 6, (1, 2, 4), {"batch_size": 5, "count": 13}))
    p, q = problem("long"), problem("long")
    engine = Emulated(p)
    assert "too many layers" in engine.describe()
    assert off_by(engine.run(6), FusedEngine(q).run(6)) < 1e-4
    close(p, q, 1e-3)


@needs_emulator
@pytest.mark.parametrize("name", ["deep", "hinge"])
def test_a_device_with_little_shared_memory(kernels, name):
    kernels.device(4, 8, 9, shared=99)
    p, q = problem(name), problem(name)
    engine = Emulated(p)
    assert engine._why_chain
    assert off_by(engine.run(3), FusedEngine(q).run(3)) < 1e-4
    close(p, q, 1e-3)


@needs_emulator
@pytest.mark.parametrize("kind", [EmulatedChain, Emulated])
def test_one_call_or_many(kernels, kind):
    p, q = problem("hinge"), problem("hinge")
    whole, parts = kind(p), kind(q)
    parts._rows = 2  # as if the tables were short
    expected = whole.run(9)
    assert torch.equal(torch.cat([parts.run(n) for n in (1, 3, 0, 5)]), expected)
    assert same(p, q) == []


@needs_emulator
@pytest.mark.parametrize("kind", [EmulatedChain, Emulated])
def test_a_run_moves_between_the_devices(kernels, kind):
    p, q = problem("least squares"), problem("least squares")
    here, there = FusedEngine(p), kind(p)
    got = [here.run(3)]
    there.step = 3
    got.append(there.run(3))
    here.step = 6
    got.append(here.run(3))
    expected = FusedEngine(q).run(9)
    assert off_by(torch.cat(got), expected) < 1e-5
    close(p, q, 1e-4)


@needs_emulator
@pytest.mark.parametrize("kind", [EmulatedChain, Emulated])
def test_images_that_are_read_as_needed_and_a_schedule(kernels, kind):
    options = {"lr_schedule": lambda t: 1.0 / (1 + t), "d_steps": 2}
    q = problem("hinge", **options)
    p = problem("hinge", source=data.open(Read(q.data.samples), budget_bytes=0), **options)
    assert not p.data.resident
    try:
        got, expected = kind(p).run(5), FusedEngine(q).run(5)
    finally:
        p.data.close()
    assert off_by(got, expected) < 1e-5
    close(p, q, 1e-4)


@needs_emulator
def test_a_change_between_runs_is_seen(kernels):
    p, q = problem("hinge"), problem("hinge")
    ours, others = Emulated(p), FusedEngine(q)
    for engine, problem_ in ((ours, p), (others, q)):
        engine.run(2)
        with torch.no_grad():
            problem_.generator[1].weight.mul_(0.5)
        problem_.optimizer_d.param_groups[0]["lr"] *= 3
        engine.run(2)
        engine.close()
        engine.run(3)
    close(p, q, 1e-4)


GUARD = 7.5


def guarded(tensor, offset, guards):
    """A copy `offset` floats into an aligned buffer, with room that nobody may write to."""
    n = tensor.numel()
    buffer = torch.full((n + 64,), GUARD)
    guards += [buffer[:offset], buffer[offset + n :]]
    return buffer[offset : offset + n].view(tensor.shape).copy_(tensor)


@needs_emulator
@pytest.mark.parametrize("offset", [16, 17])
@pytest.mark.parametrize(
    ("kind", "name"), [(EmulatedChain, "deep"), (EmulatedChain, "hinge"), (Emulated, "wasserstein")]
)
def test_parameters_anywhere_and_nothing_beside_them(kernels, kind, name, offset):
    p, q = problem(name), problem(name)
    exact = FusedEngine(q)
    FusedEngine(p).run(1)  # makes the moments
    exact.run(1)
    guards = []
    with torch.no_grad():
        pairs = ((p.generator, p.optimizer_g), (p.discriminator, p.optimizer_d), (p.ema, None))
        for net, optimizer in pairs:
            for w in net.parameters():
                w.data = guarded(w, offset, guards)
                for key in ("exp_avg", "exp_avg_sq") if optimizer else ():
                    state = optimizer.state[w]
                    state[key] = guarded(state[key], offset, guards)
    engine = kind(p)
    engine.step = 1
    assert off_by(engine.run(3), exact.run(3)) < 1e-4
    close(p, q, 1e-3)
    assert all((guard == GUARD).all() for guard in guards)


@needs_emulator
def test_why_the_chain(kernels):
    kernels.device(132)
    assert "one persistent kernel" in Emulated(problem()).describe()
    assert "graphs of 11 kernels a step" in EmulatedChain(problem()).describe()
    assert "BatchNorm1d" in Emulated(problem("deep")).describe()
    assert "more than 512" in Emulated(problem(batch_size=513, count=600)).describe()
    kernels.device(2)
    assert "do not fit" in Emulated(problem()).describe()


@needs_emulator
@pytest.mark.parametrize(("blocks", "rounds"), [(132, 2), (120, 2), (119, 3), (107, 4)])
def test_the_tiles_of_the_weights_of_the_reference_pair(kernels, blocks, rounds):
    # 120 tiles of G's weights and 108 of D's, with their biases; a block has room for `rounds`.
    for shared, fits in ((114 + 25 * rounds, True), (114 + 25 * rounds - 20, False)):
        kernels.device(blocks, shared=shared)
        assert ("do not fit" not in Emulated(problem("reference")).describe()) == fits


@needs_emulator
@pytest.mark.parametrize("name", ["hinge", "wasserstein"])
def test_the_persistent_kernel_stamps_its_phases(kernels, name):
    p, q = problem(name), problem(name)
    engine, other = Emulated(p), Emulated(q)
    engine._rows = 2  # as if the tables were short
    start = time.perf_counter()
    phases = engine.profile(5)
    took = time.perf_counter() - start
    assert engine.step == 5 and engine._stamps is None
    other.run(5)
    assert same(p, q) == []  # profiled or not
    names = [name for name, *_ in phases]
    assert names == [
        "both: G forward 0", "both: G forward 1", "D's update: D forward 0",
        "D's update: D forward 1, loss and back", "D's update: weights of D",
        "G's update: D forward 0", "G's update: D forward 1, loss and back",
        "G's update: D backward 0", "G's update: G backward 1", "G's update: weights of G",
    ]  # fmt: skip
    weights = [
        sum(m.weight.numel() for m in n.modules() if isinstance(m, nn.Linear))
        for n in (p.generator, p.discriminator)
    ]
    assert sum(work for _, work, *_ in phases) > 2 * p.batch_size * p.d_steps * sum(weights)
    # In the emulator the clock is the host's.
    assert all(seconds > 0 for _, _, seconds, _ in phases)
    assert 5 * sum(seconds for _, _, seconds, _ in phases) < took


@needs_emulator
def test_what_cannot_be_stamped_says_why(kernels):
    with pytest.raises(ValueError, match="a kernel a phase .*BatchNorm1d"):
        Emulated(problem("deep")).profile(3)
    engine = Emulated(problem("hinge"))
    with pytest.raises(ValueError, match="n is 0"):
        engine.profile(0)
    engine._stamps = torch.zeros(22, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="stamps has 22 elements; expected 23"):
        engine._enqueue(engine.problem.data.samples, True, 2)
    chain = EmulatedChain(problem("hinge"))
    chain._stamps = engine._stamps
    with pytest.raises(RuntimeError, match="stamps are the persistent kernel's"):
        chain._enqueue(chain.problem.data.samples, True, 2)


@needs_emulator
def test_bad_arguments_name_themselves(kernels):
    engine = EmulatedChain(problem("hinge"))
    for name, value, expected in (
        ("_table", torch.empty(3, 4), "statistics"),
        ("_rate_table", torch.empty(4096, 2), "rates"),
        ("_clock", torch.empty(3, dtype=torch.int64), "clock"),
        ("_memory", torch.empty(3, dtype=torch.uint8), "memory"),
        ("_order_table", torch.empty(3, dtype=torch.int64), "order"),
    ):
        kept = getattr(engine, name)
        setattr(engine, name, value)
        with pytest.raises(RuntimeError, match=expected):
            engine._enqueue(engine.problem.data.samples, True, 4)
        setattr(engine, name, kept)
    with pytest.raises(RuntimeError, match="images"):
        engine._enqueue(engine.problem.data.samples[:2], True, 4)


# --- On a GPU


def moved(name, **changes):
    """A problem on the GPU, with the numbers of the one on the CPU."""
    p = problem(name, **changes)
    device = torch.device("cuda")
    for network in (p.generator, p.discriminator, p.ema):
        network.to(device)
    return changed(p, data=p.data.to(device), device=device)


@needs_gpu
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("name", TAKEN)
def test_steps_on_the_gpu_are_those_of_the_cpu(name, persistent, monkeypatch):
    monkeypatch.setattr(FusedCudaEngine, "allow_persistent", persistent)
    p, q = moved(name), problem(name)
    engine, _ = choose(p, "fused")
    assert bool(engine._why_chain) == (not persistent or name not in PLAIN)
    got, expected = engine.run(40), FusedEngine(q).run(40)
    assert got.is_cuda
    assert off_by(got.cpu(), expected) < 1e-3
    again = moved(name)
    assert torch.equal(choose(again, "fused")[0].run(40), got)
    assert same(p, again) == []


@needs_gpu
def test_the_gpu_follows_eager():
    p, q = moved("reference"), moved("reference")
    engine, said = choose(p, "auto")
    assert isinstance(engine, FusedCudaEngine), said
    assert off_by(engine.run(50), EagerEngine(q).run(50)) < 1e-3


@needs_gpu
def test_a_change_between_runs_is_seen_on_the_gpu(monkeypatch):
    monkeypatch.setattr(FusedCudaEngine, "allow_persistent", False)
    p, q = moved("reference"), problem("reference")
    ours, others = FusedEngine(p), FusedEngine(q)
    assert isinstance(ours, FusedCudaEngine)
    for engine, problem_ in ((ours, p), (others, q)):
        engine.run(18)
        state = problem_.optimizer_g.state_dict()
        problem_.optimizer_g.load_state_dict(copy.deepcopy(state))  # moments in new places
        problem_.optimizer_d.param_groups[0]["lr"] *= 3
        engine.run(18)
    got = {key: value.cpu() for key, value in tensors(p).items()}
    for key, value in tensors(q).items():
        assert (got[key] - value).norm() <= 1e-2 * value.norm() + 1e-6, key
