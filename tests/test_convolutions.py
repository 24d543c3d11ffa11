"""Convolutions of any networks by our operators, which their owners do not notice."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from operator_cases import needs_library
from small_runs import QUICK
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

from fastgan import data, engines, ops
from fastgan.engines import convolutions
from fastgan.ops.rectifier import _Rectifier as Rectifier
from fastgan.ops.rectifier import rectifier
from fastgan.problem import make_problem
from fastgan.trainer import Trainer

pytestmark = needs_library


class Discriminator(nn.Module):
    """Modules, a normalised weight and a call of torch's function."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True))
        self.norm = spectral_norm(nn.Conv2d(8, 8, 3, padding=1))
        self.weight = nn.Parameter(0.2 * torch.randn(8, 8, 3, 3))
        self.last = nn.Linear(8 * 16, 1)

    def forward(self, x):
        h = self.norm(self.first(x))
        h = F.leaky_relu_(F.conv2d(h, self.weight, padding=1), 0.2)
        return self.last(h.flatten(1))


class Viewed(Discriminator):
    """What only the default memory format allows."""

    def forward(self, x):
        return self.last(self.norm(self.first(x)).view(len(x), -1))


class Checkpointed(Discriminator):
    reentrant = False

    def forward(self, x):
        h = checkpoint(self.norm, self.first(x), use_reentrant=self.reentrant)
        return self.last(h.flatten(1))


class Reentrant(Checkpointed):
    reentrant = True


def pair(kind=Discriminator):
    torch.manual_seed(0)
    g = nn.Sequential(
        nn.ConvTranspose2d(5, 8, 4, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(8, 3, 4, 2, 1),
        nn.Tanh(),
    )
    return g, kind()


def images(n=20):
    drawn = torch.randint(0, 256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    return data.open(drawn.to(torch.uint8))


def made(kind=Discriminator, **options):
    options = {"batch_size": 8, "latent_dim": (5, 1, 1), "device": "cpu", "lr": 1e-3, **options}
    return make_problem(*pair(kind), images(), **options)


def after(p, steps=3):
    engine, said = engines.choose(p, "eager")
    statistics = engine.run(steps)
    states = [t.clone() for m in (p.generator, p.discriminator) for t in m.state_dict().values()]
    return said, [statistics, *states]


@pytest.fixture
def always(monkeypatch):
    """Every pass that the operators serve is by them; yields what was called."""
    calls = []
    monkeypatch.setattr(ops.conv, "is_faster", lambda *sizes: calls.append(sizes) or True)
    return calls


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Discriminator, {}),
        (Discriminator, {"penalties": "r1"}),
        (Discriminator, {"penalties": "wgan-gp", "loss": "wasserstein"}),
        (Discriminator, {"channels_last": True}),
        (Discriminator, {"channels_last": False}),
        (Viewed, {"penalties": "r1"}),
        (Checkpointed, {"penalties": "r1"}),
        (Reentrant, {}),
    ],
)
def test_a_step_is_that_of_torch(always, kind, options):
    said, found = after(made(kind, **options))
    assert "convolutions by fastgan's operators: 1 of 2 of G" in said
    last = options.get("channels_last", kind is not Viewed)
    assert ("in channels-last memory" in said) == last
    always.clear()
    plain, expected = after(made(kind, operators="torch", **options))
    assert "operators" not in plain and not always
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(
    "options", [{}, {"penalties": "r1"}, {"channels_last": True}, {"channels_last": False}]
)
def test_in_bf16_only_the_memory_format_changes(monkeypatch, options):
    formats = []
    call = convolutions._Taken.call

    def seen(self, road, x, *rest, **more):
        formats.append(ops.conv.suggests_channels_last(x))
        return call(self, road, x, *rest, **more)

    monkeypatch.setattr(convolutions._Taken, "call", seen)
    options = {"precision": "bf16", **options}
    said, found = after(made(**options))
    wanted = "channels_last" not in options
    assert ("convolutions by torch in channels-last memory" in said) == wanted
    assert "operators" not in said and all(formats)
    assert bool(formats) == wanted
    # A bfloat16 has 8 bits, and Adam's first steps go by signs.
    _, expected = after(made(**{**options, "channels_last": not wanted}))
    torch.testing.assert_close(found[0], expected[0], rtol=0.1, atol=0.02)


def test_the_operators_are_called(always, monkeypatch):
    shapes = []
    convolve = ops.conv._convolve
    monkeypatch.setattr(
        ops.conv, "_convolve", lambda x, w, *rest: shapes.append(w.shape) or convolve(x, w, *rest)
    )
    after(made(), 1)
    # G's two passes; D's three, by a module, a parametrised one and a function.
    assert shapes.count((8, 3, 4, 4)) >= 5 and shapes.count((8, 8, 3, 3)) >= 6


def test_what_a_step_sees_of_the_modules_is_what_the_user_made(always):
    p = made()
    seen = []

    def look(module, args, out):
        forwards = [vars(m).get("forward") for n in p for m in n.modules()]
        copied = pickle.loads(pickle.dumps(copy.deepcopy(p[0])))
        kinds = [type(m) for n in p for m in n.modules()]
        strides = [t.stride() for n in p for t in n.state_dict().values()]
        seen.append((forwards, str(copied), kinds, strides))
        assert nn.Conv2d.forward is forward and isinstance(p[1].first[0], nn.Conv2d)

    forward = nn.Conv2d.forward
    p, problem = (p.generator, p.discriminator), p
    look(None, None, None)
    p[1].first.register_forward_hook(look)
    after(problem, 1)
    look(None, None, None)
    assert len(seen) == 5 and all(one == seen[0] for one in seen)
    assert not any(seen[0][0])


def test_a_run_that_goes_on_has_the_bits_of_one_that_did_not_stop(always, tmp_path):
    def run(out, steps, **options):
        options = {**QUICK, "latent_dim": (5, 1, 1), "steps": steps, **options}
        trainer = Trainer(*pair(), images(), out=tmp_path / out, **options)
        trainer.fit()
        return trainer

    whole = run("whole", 6)
    run("part", 3)
    resumed = Trainer.resume(tmp_path / "part", *pair(), images())
    resumed.fit(steps=6)
    for name in ("generator", "discriminator"):
        for a, b in zip(
            getattr(whole, name).state_dict().values(),
            getattr(resumed, name).state_dict().values(),
            strict=True,
        ):
            assert torch.equal(a, b)


@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_rectifier_sends_no_zeros_back(slope, inplace):
    x = torch.randn(4, 3, dtype=torch.float64)
    x.requires_grad_()
    scale = torch.rand(3, dtype=torch.float64, requires_grad=True)

    def run(x, scale):
        return rectifier(x * scale, slope, inplace)

    assert torch.equal(run(x, scale), F.leaky_relu(x * scale, slope))
    assert torch.autograd.gradcheck(run, (x, scale))
    assert torch.autograd.gradgradcheck(run, (x, scale))
    pre = x * scale
    y = rectifier(pre.clone() if inplace else pre, slope, inplace)
    (slopes,) = torch.autograd.grad(y.sum(), pre, create_graph=True)
    # torch's own would be zeros, and all below would be differentiated for them.
    assert not slopes.requires_grad


@pytest.mark.parametrize("inplace", [False, True])
def test_relu_of_what_leaky_relu_cannot_take(inplace):
    x = torch.tensor([-3.0, float("-inf"), 2.0])
    for recorded in (False, True):
        given = (x.clone().requires_grad_() if recorded else x.clone()) * 1
        assert rectifier(given, 0.0, inplace).tolist() == [0.0, 0.0, 2.0]
    assert rectifier(torch.tensor([-1, 2]), 0.0, inplace).tolist() == [0, 2]


class SlopeAlone:
    """Every second update of D has the penalty only, as lazy ones are written by hand."""

    def d_loss(self, step):
        if step.number % 2:
            points = step.points("real", step.real, step.fake)
            (slope,) = torch.autograd.grad(step.D(points).sum(), points, create_graph=True)
            return slope.square().sum((1, 2, 3)).mean()
        return step.D(step.fake.detach()).mean() - step.D(step.real).mean()

    def g_loss(self, step):
        return -step.D(step.fake).mean()


def test_weights_without_a_part_in_the_slope_are_moved_as_in_torch(always):
    # Adam moves a weight whose gradient is 0, and leaves one alone that has none.
    _, expected = after(made(method=SlopeAlone(), operators="torch"), 2)
    _, found = after(made(method=SlopeAlone()), 2)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, equal_nan=True)


def test_a_negative_slope_is_left_to_torch():
    x = torch.randn(5, requires_grad=True)
    y = rectifier(x, -0.5)
    assert torch.equal(y, F.leaky_relu(x, -0.5)) and "Leaky" in type(y.grad_fn).__name__


def test_only_penalised_updates_take_rectifiers(always, monkeypatch):
    taken = []
    monkeypatch.setattr(
        Rectifier, "apply", lambda x, *rest: taken.append(x.shape) or F.leaky_relu(x, *rest)
    )
    after(made(), 1)
    assert not taken
    after(made(penalties="r1:10:2"), 2)
    assert len(taken) == 4  # one step of two: two rectifiers, on real and on fake


def test_networks_without_a_faster_convolution_are_left_alone():
    said, _ = after(made(), 1)  # too few products
    assert "operators" not in said
    dense = nn.Sequential(nn.Linear(5, 192), nn.Tanh(), nn.Unflatten(1, (3, 8, 8)))
    critic = nn.Sequential(nn.Flatten(), nn.Linear(192, 1))
    said, _ = after(make_problem(dense, critic, images(), latent_dim=5, device="cpu"), 1)
    assert "operators" not in said


def test_a_network_that_grows_is_looked_at_again(always):
    p = made()
    p.discriminator.norm, p.discriminator.weight = nn.Identity(), None
    p.discriminator.forward = lambda x: p.discriminator.last(p.discriminator.first(x).flatten(1))
    engine, said = engines.choose(p, "eager")
    assert said.count("1 of 1 of D") == 1
    engine.run(1)
    p.discriminator.first.append(nn.Conv2d(8, 8, 3, padding=1))
    engine.run(1)
    assert "2 of 2 of D" in engine.describe()


def test_what_a_layer_makes_may_be_changed_in_place(always):
    x = torch.randn(2, 4, 6, 6)
    for network in (nn.Conv2d(4, 5, 3, padding=1), nn.ConvTranspose2d(4, 5, 4, 2, 1)):
        run = ops.conv2d if type(network) is nn.Conv2d else ops.conv_transpose2d
        places = network.stride, network.padding
        y = F.leaky_relu_(run(x, network.weight, network.bias, *places), 0.2)
        y.sum().backward()
        grad, network.weight.grad = network.weight.grad, None
        F.leaky_relu_(network(x), 0.2).sum().backward()
        torch.testing.assert_close(grad, network.weight.grad, rtol=1e-4, atol=1e-4)


def test_memory_of_large_results_is_used_again_and_can_be_freed():
    x, weight = torch.randn(8, 64, 32, 32), torch.randn(64, 64, 3, 3)
    x = x.to(memory_format=torch.channels_last)
    with torch.no_grad():
        first = ops.conv2d(x, weight, padding=1)
        expected, place = first.clone(), first.data_ptr()
        second = ops.conv2d(x, weight, padding=1)
        assert second.data_ptr() != place
        del first
        third = ops.conv2d(x, weight, padding=1)
        assert third.data_ptr() == place and torch.equal(third, expected)
        size = third.numel() * 4
        del third
        assert ops.conv.release_memory() >= size
        assert torch.equal(second, expected)


# --- What leaves a pass is as it would be without ------------------------------------------------


class Views:
    """A game by hand that flattens what passes return, and gradients, by view."""

    def d_loss(self, step):
        fake = step.fake.detach()
        places = step.uniform(1).view(-1, 1, 1, 1)
        between = torch.lerp(fake.view(fake.shape), step.real, places).requires_grad_()
        (slope,) = torch.autograd.grad(step.D(between).sum(), between, create_graph=True)
        excess = slope.view(len(slope), -1).norm(dim=1) - 1
        return step.D(fake).mean() - step.D(step.real).mean() + excess.square().mean()

    def g_loss(self, step):
        means = step.D.features({"of": step.fake})["of"].view(len(step.fake), -1).mean(0)
        return means.square().sum() - step.D(step.fake).mean()


class Features(Discriminator):
    def features(self, x):
        return {"of": self.norm(self.first(x["of"]))}


def test_a_method_may_view_what_passes_return_and_gradients(always):
    said, found = after(made(Features, method=Views()))
    assert "in channels-last memory" in said
    _, expected = after(made(Features, method=Views(), operators="torch"))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, equal_nan=True)


def test_a_hook_that_comes_later_may_view_what_it_is_shown(always):
    p = made()
    engine, said = engines.choose(p, "eager")
    assert "in channels-last memory" in said
    engine.run(1)
    seen = []
    p.discriminator.norm.register_forward_hook(
        lambda m, i, out: seen.append(out.view(len(out), -1))
    )
    engine.run(1)
    assert seen and "in channels-last memory" not in engine.describe()


class Kept(Discriminator):
    def forward(self, x):
        self.kept = [self.norm(self.first(x))]
        return self.last(self.kept[0].flatten(1))


def test_what_a_pass_leaves_in_a_module_is_in_the_default_format(always):
    p = made(Kept)
    after(p)
    assert p.discriminator.kept[0].is_contiguous()
