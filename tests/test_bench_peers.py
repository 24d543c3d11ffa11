"""What is timed: the machine, the plans, and the programs that are compared."""

import contextlib
import dataclasses
import json
import shutil
import subprocess
from dataclasses import replace

import machine
import numpy as np
import peers
import pytest
import torch
import worker
from checkout import BENCHMARKS, tiny
from plans import CONV, DCGAN, GRID, MEMBERS, POINTS, SWEEP, Plan, pair

# Machine


def test_facts_are_plain_data_and_name_what_is_absent():
    facts = machine.facts(1, native=False)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["threads"] == 1 and len(facts["cpus"]) == 1
    assert facts["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert facts["cpu"] and facts["usable_cores"] >= 1


@pytest.mark.skipif(machine.compiler() is None, reason="no C++ compiler")
def test_native_programs_measure_something():
    facts = machine.facts()
    rates = [isa["all"] for isa in facts["peak"]["fp32"].values()]
    assert rates and all(0.1 < rate < 10_000 for rate in rates)
    assert facts["peak_fp32_gflops"] == max(rates)
    if facts["usable_cores"] > 1:
        assert 1 < facts["roundtrip_ns"] < 1e6


def test_without_a_compiler_the_reason_is_recorded(monkeypatch):
    monkeypatch.setattr(machine, "compiler", lambda: None)
    facts = machine.facts()
    assert facts["roundtrip_ns"] is None and facts["peak_fp32_gflops"] is None
    assert all("no C++ compiler" in reason for reason in facts["missing"].values())
    assert "peak" in facts["missing"]


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="no cross compiler")
@pytest.mark.parametrize("name", ["core_roundtrip", "fma_peak", "cache_bandwidth"])
def test_native_programs_compile_for_arm64(name, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "aarch64-linux-gnu-g++ -Wall -Wextra -Werror -static")
    monkeypatch.setattr(machine, "_build_dir", lambda: tmp_path)
    program = machine.native(name)
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    cpus = machine.pick_cpus(2)
    if name == "core_roundtrip" and emulator and len(cpus) == 2:
        command = [emulator, program, *map(str, cpus)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert json.loads(done.stdout)["best"] > 0


def test_one_cpu_of_every_core_comes_first():
    usable = machine.usable_cpus()
    assert sorted(machine.pick_cpus(len(usable))) == usable
    assert machine.pick_cpus(1) == machine.pick_cpus(len(usable))[:1]


# Plans


def test_operations_of_the_reference_pair():
    # G 100-256-784 forward three times' worth, D 784-256-1 six, and the gradients between layers.
    g, d = 100 * 256 + 256 * 784, 784 * 256 + 256
    assert Plan(batch=64).flops == 2 * 64 * (3 * g + 6 * d + 2 * 256 + 256 * 784)


SMALL_DCGAN = [
    Plan("dcgan", hidden=2, image=(3, size, size), latent=5, batch=2, network="dcgan")
    for size in (16, 64)
]


SMALL_RESNET = Plan("resnet", hidden=2, image=(3, 32, 32), latent=5, batch=2, network="resnet")


@pytest.mark.parametrize(
    "plan", [*pair(), *GRID, *SMALL_DCGAN, SMALL_RESNET], ids=lambda plan: plan.title
)
def test_operations_match_what_autograd_does(plan):
    """Counts the products that a step of clean eager really performs."""
    from peers import eager, networks
    from torch.utils.flop_counter import FlopCounterMode

    generator, discriminator = networks.build(plan)
    d_loss_of, g_loss_of = eager.losses_of(plan, generator, discriminator)
    real = torch.zeros(plan.batch, *plan.image)
    counted = FlopCounterMode(display=False)
    counted.mod_tracker = NoModules()  # its hooks cannot see gradients that stop at parameters
    with counted:
        torch.autograd.grad(d_loss_of(real), list(discriminator.parameters()))
        torch.autograd.grad(g_loss_of(), list(generator.parameters()))
    assert counted.get_total_flops() == plan.flops


@pytest.mark.parametrize("network", ["mlp", "dcgan"])
def test_operations_of_r1_match_what_autograd_does(network):
    from peers import eager, networks
    from torch.utils.flop_counter import FlopCounterMode

    image = (3, 16, 16)
    plan = Plan(hidden=4, image=image, batch=2, network=network, penalty="r1", latent=5)
    generator, discriminator = networks.build(plan)
    counted = FlopCounterMode(display=False)
    # Its hooks on modules cannot see a gradient of an input.
    counted.mod_tracker = NoModules()
    with counted:
        loss = eager.losses_of(plan, generator, discriminator)[0](torch.zeros(2, *image))
        torch.autograd.grad(loss, list(discriminator.parameters()))
    without = Plan(hidden=4, image=image, batch=2, network=network, latent=5)
    g_step = without.flops - _d_step(without)
    # A convolution's second derivative is taken with respect to the constant above it as well.
    more = 2 * plan.batch * plan.products("d")[-1] if network == "dcgan" else 0
    assert counted.get_total_flops() == plan.flops - g_step + more


class NoModules(contextlib.nullcontext):
    parents = ("Global",)


def _d_step(plan) -> int:
    g, d = plan.products("g"), plan.products("d")
    return 2 * plan.batch * (sum(g) + 4 * sum(d) + 2 * sum(d[1:]))


def test_sweep_and_dcgan_are_the_plans_of_the_gpu():
    assert {(p.batch, p.hidden) for p in SWEEP} >= {(b, h) for b in (64, 8192) for h in (256, 2048)}
    assert [p.penalty for p in DCGAN] == ["none", "r1"]
    assert all((p.batch, p.image, p.network) == (128, (3, 64, 64), "dcgan") for p in DCGAN)
    assert all(p.steps_per_epoch >= p.chunk_on_gpu >= 1 for p in (*SWEEP, *pair()))


def test_the_grid_covers_what_it_should():
    assert len(GRID) >= 8
    assert {2, 3, 4, 5} <= {p.depth for p in GRID}
    assert min(p.hidden for p in GRID) == 64 and max(p.hidden for p in GRID) == 2048
    assert min(p.batch for p in GRID) == 16 and max(p.batch for p in GRID) == 1024
    assert any(p.image == (3, 32, 32) for p in GRID)
    assert {"none", "g", "both"} == {p.batchnorm for p in GRID}
    assert all(p.steps_per_epoch >= p.chunk >= 1 for p in GRID)


def test_pixels_are_whole_batches_and_the_same_for_every_peer():
    plan = tiny()
    pixels = plan.pixels()
    assert pixels.dtype == np.uint8 and pixels.shape == (96, 64)
    assert (pixels == plan.pixels()).all()
    assert pixels.min() < 64 and pixels.max() > 192 and pixels.std(0).min() > 1


def test_parse_reads_and_refuses():
    plan = Plan.parse("hidden=512,depth=3,image=3x32x32,batchnorm=g,dropout=0.1,batch=128")
    assert (plan.hidden, plan.depth, plan.image, plan.batch) == (512, 3, (3, 32, 32), 128)
    assert plan.batchnorm == "g" and plan.dropout == 0.1
    for text, said in [
        ("width=3", "width=3"),
        ("hidden=x", "'x'"),
        ("image=28x28", "channels"),
        ("depth=1", "depth"),
        ("batchnorm=yes", "batchnorm"),
        ("dropout=1", "dropout"),
    ]:
        with pytest.raises(ValueError, match=said):
            Plan.parse(text)


# Peers


def test_every_entry_names_a_file_and_selection_finds_it():
    for entry in [*peers.CATALOGUE.values(), *peers.MANY.values()]:
        assert (BENCHMARKS / "peers" / f"{entry.file}.py").exists()
    for entry in peers.CATALOGUE.values():
        assert all(peers.select(entry.name, device=device) == [entry] for device in entry.devices)
    assert {e.name for e in peers.select("jax")} >= {"jax-scan", "jax-jit"}
    assert [e.name for e in peers.select("eager")] == ["eager"]
    with pytest.raises(ValueError, match="nobody"):
        peers.select("eager,nobody")


def test_merged_and_separate_passes_give_the_same_loss():
    from peers import eager, networks

    plan = tiny(dropout=0.0)
    generator, discriminator = networks.build(plan)
    real = torch.rand(plan.batch, *plan.image) * 2 - 1
    torch.manual_seed(1)
    merged = eager.losses_of(plan, generator, discriminator)[0](real)
    torch.manual_seed(1)
    fake = generator(torch.randn(plan.batch, plan.latent))
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    ones = torch.ones(plan.batch, 1)
    separate = bce(discriminator(real), ones) + bce(discriminator(fake), 0 * ones)
    torch.testing.assert_close(merged, separate)


def test_adam_for_the_compiler_is_adam():
    from peers.compile import Adam

    torch.manual_seed(0)
    plan = tiny()
    mine = torch.randn(7, 5).requires_grad_()
    theirs = mine.detach().clone().requires_grad_()
    ours = Adam([mine], plan)
    adam = torch.optim.Adam([theirs], lr=plan.lr, betas=plan.betas, eps=plan.eps)
    for _ in range(5):
        grad = torch.randn(7, 5)
        ours.update([grad])
        theirs.grad = grad
        adam.step()
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_order_visits_everything_once_an_epoch():
    from peers import networks

    order = networks.Order(tiny())
    for _ in range(2):
        seen = torch.cat([order.next() for _ in range(12)])
        assert sorted(seen.tolist()) == list(range(96))


@pytest.mark.parametrize("name", ["reference", "eager", "amp", "fastgan-eager"])
@pytest.mark.parametrize("batchnorm", ["none", "both"])
def test_twenty_steps(name, batchnorm):
    threads = torch.get_num_threads()
    host = worker.Host(name)
    try:
        answer = host.setup(tiny(batchnorm=batchnorm).to_fields(), 1)
        assert "missing" not in answer, answer
        before = [p.detach().clone() for p in _parameters(host.peer)]
        times, cpu = host.blocks(10, 2)
        assert len(times) == 2 and min(times) > 0 and cpu > 0
        after = _parameters(host.peer)
        assert all((a != b).any() for a, b in zip(after, before, strict=True))
        said = host.check()
        # Both losses start near 2 ln 2 and ln 2; twenty steps leave them in this neighbourhood.
        assert 0.8 < said["d_loss"] < 2.5 and 0.2 < said["g_loss"] < 1.5
    finally:
        host.close()
        torch.set_num_threads(threads)


def _parameters(peer) -> list[torch.Tensor]:
    if hasattr(peer, "engine"):
        generator, discriminator = peer.engine.problem.generator, peer.engine.problem.discriminator
    else:
        generator, discriminator = peer.generator, peer.discriminator
    # A bias before BatchNorm has no gradient but rounding.
    return [p for m in (generator, discriminator) for p in m.parameters() if p.ndim == 2]


@pytest.mark.parametrize("name", peers.MANY)
def test_many_pairs(name, monkeypatch):
    from peers import many

    monkeypatch.setattr(many, "STEPS", 10)
    if name == "jax-vmap":  # four times as fast to compile
        many_jax = pytest.importorskip("peers.many_jax", exc_type=ImportError)
        monkeypatch.setattr(many_jax, "UNROLL", 1)
    threads = torch.get_num_threads()
    host = worker.Host(name)
    try:
        answer = host.setup(replace(POINTS, hidden=8, batch=16, images=1000).to_fields(), 1)
        assert "missing" not in answer, answer
        n = answer["granularity"]
        assert n % MEMBERS == 0
        (seconds,), _ = host.blocks(n, 1)
        said = host.check()
        assert seconds > 0 and 0.8 < said["d_loss"] < 2.5 and "16 pairs" in said["how"]
    finally:
        host.close()
        torch.set_num_threads(threads)


def test_losses_that_are_not_finite_are_an_error():
    class Broken(peers.Peer):
        def losses(self):
            return 1.0, float("nan")

    with pytest.raises(FloatingPointError, match="nan"):
        Broken().check()


def test_the_plans_of_convolutions():
    assert {(p.network, p.image[1], p.penalty) for p in CONV} == {
        (network, side, penalty)
        for network, side in (("dcgan", 32), ("dcgan", 64), ("resnet", 32))
        for penalty in ("none", "r1", "wgan-gp")
    }
    assert set(peers.CONV.split(",")) <= set(peers.CATALOGUE)


@pytest.mark.parametrize(
    ("name", "network", "penalty"),
    [
        *((name, "dcgan", "none") for name in ("reference", "example", "eager", "fastgan-eager")),
        *((name, "dcgan", "wgan-gp") for name in ("example", "jax-jit", "fastgan-eager")),
        *((name, "resnet", "r1") for name in ("reference", "example", "eager", "fastgan-eager")),
    ],
)
def test_convolutional_steps(name, network, penalty):
    side = 16 if network == "dcgan" else 32
    sizes = network, 8, 4, 2, (3, side, side), "none", 0.0, 4, 20
    plan = Plan(*sizes, network=network, penalty=penalty)
    threads = torch.get_num_threads()
    host = worker.Host(name)
    try:
        answer = host.setup(plan.to_fields(), 1)
        if name == "reference" and (network, penalty) != ("dcgan", "none"):
            assert "no gradient penalty" in answer["missing"]
            return
        if name == "jax-jit" and "missing" in answer:
            assert "jax" in answer["missing"] or "optax" in answer["missing"]
            return
        assert "missing" not in answer, answer
        host.calls(2)
        said = host.check()
        if penalty == "wgan-gp":
            assert abs(said["d_loss"]) < 15 and abs(said["g_loss"]) < 10
        else:
            assert 0.8 < said["d_loss"] < 20 and 0 < said["g_loss"] < 2.5
    finally:
        host.close()
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["eager", "example", "jax-jit", "jax-scan", "fused"])
def test_steps_of_a_critic_with_several_updates(name):
    plan = Plan(latent=5, hidden=16, image=(1, 6, 6), batch=8, images=64, d_steps=3)
    plan = dataclasses.replace(plan, penalty="wgan-gp")
    threads = torch.get_num_threads()
    host = worker.Host(name)
    try:
        answer = host.setup(plan.to_fields(), 1)
        if "missing" in answer:
            assert name not in ("eager", "example"), answer
            pytest.skip(str(answer["missing"]))
        host.calls(3)
        said = host.check()
        assert abs(said["d_loss"]) < 15 and abs(said["g_loss"]) < 10
    finally:
        host.close()
        torch.set_num_threads(threads)


def test_operations_of_a_step_count_every_update_of_d():
    one, three = (Plan(d_steps=n).flops for n in (1, 3))
    both = Plan(d_steps=2).flops - one
    assert three == one + 2 * both and 0 < both < one


def test_r1_of_the_eager_peer_is_that_of_fastgan():
    from peers import eager, networks

    from fastgan import losses

    plans = [
        Plan(image=(1, 4, 4), hidden=8, latent=3, batch=5, dropout=0.0, penalty=penalty)
        for penalty in ("none", "r1")
    ]
    generator, discriminator = networks.build(plans[0])
    real = torch.rand(5, 1, 4, 4)
    totals = []
    for plan in plans:
        torch.manual_seed(0)
        totals.append(eager.losses_of(plan, generator, discriminator)[0](real))
    images = real.clone().requires_grad_()
    (r1,) = losses.penalties("r1")
    wanted = r1.value(discriminator(images), images)
    torch.testing.assert_close(totals[1] - totals[0], wanted)


@pytest.mark.parametrize("persistent", [True, False, None])
def test_the_persistent_kernel_tells_its_own_phases(monkeypatch, persistent):
    from peers.fastgan import Engine
    from peers.torchpeer import TorchPeer

    class Stands:
        def profile(self, steps):
            return [["both: G forward 0", 5.0, 1e-6 * steps, 0.0]]

    monkeypatch.setattr(TorchPeer, "profile", lambda self, steps: [("gemm x 1", 0.0, 1.0, 0.0)])
    peer = Engine("cuda")
    peer.engine = Stands()
    if persistent is not None:  # an engine without that notion
        peer.engine.persistent = persistent
    expected = ("both: G forward 0", 5.0, 3e-6, 0.0) if persistent else ("gemm x 1", 0.0, 1.0, 0.0)
    assert peer.profile(3) == [expected]
