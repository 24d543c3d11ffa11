"""Networks that are no plain nn.Modules train as in a plain loop."""

import threading

import pytest
import torch
import torch.nn.functional as F
from pairs import SHAPE, by_hand, problem, same, weights
from small_runs import assert_same_bits, every_bit, own, own_pair, pixels
from torch import nn

from fastgan import Trainer, data, engines, ops
from fastgan.run.checkpoint import CheckpointError

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning"
)


def mlps():
    torch.manual_seed(4)
    return (
        nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 36), nn.Unflatten(1, SHAPE)),
        nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1)),
    )


# --- TorchScript ----------------------------------------------------------------------------------


def scripted():
    g, d = mlps()
    return torch.jit.script(g), torch.jit.script(d)


def traced():
    g, d = mlps()
    return torch.jit.trace(g, torch.zeros(8, 5)), torch.jit.trace(d, torch.zeros(8, *SHAPE))


def scripted_inside():
    g, d = mlps()
    d[1] = torch.jit.script(d[1])
    return g, d


@pytest.mark.parametrize("engine", ["auto", "eager"])
@pytest.mark.parametrize("make", [scripted, traced, scripted_inside])
def test_torchscript_trains_as_by_hand(make, engine):
    p, q = problem(*make(), ema=0.9), problem(*mlps(), ema=0.9)
    chosen = engines.choose(p, engine)[0]
    assert chosen.name == "eager"
    found = torch.cat([chosen.run(1), chosen.run(4)])
    torch.testing.assert_close(found, by_hand(q, 5), rtol=1e-5, atol=1e-6)
    for mine, other in ((p.generator, q.generator), (p.ema, q.ema)):
        torch.testing.assert_close(weights(mine), weights(other), rtol=1e-5, atol=1e-6)
    assert not any(w.requires_grad for w in p.ema.parameters())


def test_a_run_of_torchscript_resumes_with_the_same_bits(tmp_path):
    images = torch.rand(22, *SHAPE) * 2 - 1
    options = {"latent_dim": 5, "batch_size": 8, "ema": 0.5, "device": "cpu"}
    Trainer(*scripted(), images, **options, out=tmp_path).fit(steps=4)
    resumed = Trainer.resume(tmp_path, *scripted(), images)
    resumed.fit(steps=7)
    whole = Trainer(*scripted(), images, **options)
    whole.fit(steps=7)
    for name in ("generator", "discriminator", "ema"):
        assert same(weights(getattr(resumed, name)), weights(getattr(whole, name)))


# --- made under inference_mode --------------------------------------------------------------------


def test_weights_that_can_never_be_trained_are_told():
    with torch.inference_mode():
        g, d = mlps()
    with pytest.raises(
        ValueError, match=r"generator.0.weight was made within torch.inference_mode"
    ):
        problem(g, d)


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_a_trainer_made_or_resumed_under_inference_mode_trains(tmp_path, engine):
    images = torch.rand(22, *SHAPE) * 2 - 1
    options = {"latent_dim": 5, "batch_size": 8, "ema": 0.5, "device": "cpu", "engine": engine}
    networks = mlps()
    with torch.inference_mode():
        first = Trainer(*networks, images, **options, out=tmp_path)
        own = Trainer(None, None, "digits", device="cpu", engine=engine, width=8)
    own.fit(steps=2)
    first.fit(steps=3)
    networks = mlps()
    with torch.inference_mode():
        resumed = Trainer.resume(tmp_path, *networks, images)
    resumed.fit(steps=6)
    first.fit(steps=6)
    assert same(weights(resumed.ema), weights(first.ema))


# --- doubles --------------------------------------------------------------------------------------

NO_SLOPE = {"0.bias", "1.running_mean"}
"""A bias before a norm has no gradient but rounding, of which Adam makes steps as large as any."""


@pytest.mark.parametrize(
    ("engine", "kind", "largest"),
    [
        ("eager", torch.float64, 1e-10),
        ("eager", torch.float32, 2e-5),
        ("auto", torch.float32, 2e-5),
    ],
)
def test_what_engines_are_off_from_a_loop_in_doubles_is_rounding(engine, kind, largest):
    def normed(kind):
        torch.manual_seed(4)
        g = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 36))
        d = nn.Sequential(nn.Linear(36, 16), nn.BatchNorm1d(16), nn.LeakyReLU(0.2))
        # Without tanh the norm in D would take G's last bias away as well.
        g.extend([nn.Tanh(), nn.Unflatten(1, SHAPE)])
        d = nn.Sequential(nn.Flatten(), d, nn.Linear(16, 1))
        return g.to(kind), d.to(kind)

    p, q = problem(*normed(kind)), problem(*normed(torch.float64))
    found = engines.choose(p, engine)[0].run(20)
    torch.testing.assert_close(found, by_hand(q, 20), rtol=1e-5, atol=1e-6)
    for mine, other in ((p.generator, q.generator), (p.discriminator, q.discriminator)):
        for (name, a), b in zip(
            mine.state_dict().items(), other.state_dict().values(), strict=True
        ):
            if not name.endswith(tuple(NO_SLOPE)):
                assert (a.double() - b).norm() <= largest * b.double().norm(), name


# --- parameters that are no weights ---------------------------------------------------------------


VALUES = pytest.mark.parametrize("values", [torch.tensor([3, 1]), torch.tensor([True, False])])


class Chosen(nn.Module):
    """A network with a parameter that is a table of indices or switches."""

    def __init__(self, network, values):
        super().__init__()
        self.network = network
        self.order = nn.Parameter(values.clone(), requires_grad=False)

    def forward(self, x):
        return self.network(x)


@VALUES
@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_parameters_that_have_no_mean_are_copied_to_the_average(engine, values):
    g, d = mlps()
    p = problem(Chosen(g, values), Chosen(d, values), ema=0.5)
    q = problem(*mlps(), ema=0.5)
    chosen = engines.choose(p, engine)[0]
    p.generator.order.data.logical_not_()
    chosen.run(3)
    engines.choose(q, "eager")[0].run(3)
    assert torch.equal(p.ema.order, p.generator.order) and p.ema.order.dtype == values.dtype
    torch.testing.assert_close(weights(p.ema.network), weights(q.ema), rtol=1e-5, atol=1e-6)


@VALUES
def test_parameters_that_are_no_weights_are_left_out_in_asking_for_probabilities(values):
    g, d = mlps()
    with torch.no_grad():
        d[-1].weight.mul_(1e-3)
        d[-1].bias.fill_(0.5)
    p = problem(g, nn.Sequential(d, Chosen(nn.Identity(), values)))
    assert engines.choose(p, "eager")[0].run(1).isfinite().all()


# --- functions that a program has replaced, threads that draw -------------------------------------


needs_library = pytest.mark.skipif(
    not ops.has_kernels(torch.device("cpu")), reason="the CPU library is not built"
)


@needs_library
def test_a_function_of_torchs_that_is_replaced_between_runs_is_noticed(monkeypatch):
    p, q = problem(*mlps()), problem(*mlps())
    chosen, _ = engines.choose(p)
    assert chosen.name == "fused"
    plain = engines.choose(q, "eager")[0]
    engines.advance(chosen, 2, "auto")
    plain.run(2)
    known = F.leaky_relu

    def doubled(input, negative_slope=0.01, inplace=False):
        return known(input, negative_slope, inplace) * 2

    monkeypatch.setattr(F, "leaky_relu", doubled)
    chosen, _ = engines.advance(chosen, 2, "auto")
    assert chosen.name == "eager"
    torch.testing.assert_close(chosen.run(2), plain.run(2), rtol=1e-5, atol=1e-6)


@needs_library
def test_a_thread_that_draws_meanwhile_takes_no_plan_away(monkeypatch):
    from fastgan.engines.fused import trace

    known, calls = trace._traced, []

    def traced(module):
        if not calls:
            thread = threading.Thread(target=torch.rand, args=(3,))
            thread.start()
            thread.join()
        calls.append(module)
        return known(module)

    monkeypatch.setattr(trace, "_traced", traced)
    assert engines.choose(problem(*mlps()))[0].name == "fused"
    assert len(calls) > 2


# --- networks that load their state in a way of their own -----------------------------------------


class Grows(nn.Module):
    """Keeps the last rows that it saw, and makes room for as many as were saved."""

    def __init__(self, how):
        super().__init__()
        self.register_buffer("rows", torch.zeros(0, 16))
        if how == "a hook":
            self.register_load_state_dict_pre_hook(Grows.make_room)

    def make_room(self, state, prefix, *_):
        self.rows = torch.empty_like(state[f"{prefix}rows"])

    def forward(self, x):
        self.rows = torch.cat([self.rows, x.detach()])[-20:]
        return x - self.rows.mean(0)


class GrowsByItself(Grows):
    def _load_from_state_dict(self, state, prefix, *others):
        self.make_room(state, prefix)
        super()._load_from_state_dict(state, prefix, *others)


@pytest.mark.parametrize("how", ["a hook", "a method", "nothing"])
def test_what_a_network_makes_of_its_state_dict_is_its_own(tmp_path, how):
    def pair():
        g, d = own_pair()
        g.body.insert(1, GrowsByItself(how) if how == "a method" else Grows(how))
        return g, d

    own(tmp_path, pair=pair, ema=0.5).fit(steps=4)
    if how == "nothing":
        with pytest.raises(CheckpointError, match=r"body.1.rows is \[0, 16\], saved \[20, 16\]"):
            Trainer.resume(tmp_path, *pair(), data.open(pixels()))
        return
    resumed = Trainer.resume(tmp_path, *pair(), data.open(pixels()))
    resumed.fit(steps=7)
    whole = own(pair=pair, ema=0.5)
    whole.fit(steps=7)
    assert_same_bits(every_bit(resumed), every_bit(whole))
