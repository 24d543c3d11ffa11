"""Choosing and making an engine leaves nothing behind in networks, data and generators."""

import functools
import logging
import random as python_random
import threading

import numpy
import pytest
import torch
from pairs import SHAPE, discriminator, generator, images, problem
from torch import nn

from fastgan import data, engines
from fastgan.engines import probe


class ActNorm(nn.Module):
    """Takes its scale and shift from the first batch it sees (Glow)."""

    def __init__(self, features):
        super().__init__()
        self.register_buffer("done", torch.tensor(False))
        self.scale = nn.Parameter(torch.ones(features))
        self.shift = nn.Parameter(torch.zeros(features))
        self.first = None

    def forward(self, x):
        if not self.done and self.training:
            with torch.no_grad():
                self.scale.copy_(1 / (x.std(0) + 1e-6))
                self.shift.copy_(-x.mean(0))
                self.done.fill_(True)
            self.first = len(x)
        return (x + self.shift) * self.scale


class Counts(nn.Module):
    """Keeps what it saw in every way that a module can."""

    def __init__(self):
        super().__init__()
        self.calls, self.seen = 0, []
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("u", torch.ones(16))

    def forward(self, x):
        self.calls += 1
        self.seen.append(len(x))
        self.features = x
        self.mean = 0.9 * self.mean + 0.1 * x.mean()
        self.u.mul_(0.5)
        return x


class Draws(nn.Module):
    """Draws from every generator there is."""

    def __init__(self):
        super().__init__()
        self.own = torch.Generator().manual_seed(3)

    def forward(self, x):
        noise = torch.rand(x.shape) + torch.rand(x.shape, generator=self.own)
        return x + 1e-3 * noise * (python_random.random() + numpy.random.rand())


LAYERS = {
    "initialised by data": lambda: ActNorm(16),
    "counts and keeps": Counts,
    "draws": Draws,
    "spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(16, 16)),
    "new spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16)),
    "weight norm": lambda: nn.utils.weight_norm(nn.Linear(16, 16)),
    "batch norm": lambda: nn.BatchNorm1d(16),
    "frozen in eval": lambda: nn.BatchNorm1d(16).eval(),
}


def state_of(p):
    """All there is, by identity and by value."""
    found = {}
    for label, network in (("g", p.generator), ("d", p.discriminator)):
        for path, m in network.named_modules():
            for table in ("_parameters", "_buffers"):
                for name, t in vars(m)[table].items():
                    found[f"{label}.{path}.{name}"] = (t, t.detach().clone())
            plain = {k: v for k, v in vars(m).items() if not k.startswith("_")}
            found[f"{label}.{path}"] = (
                dict(plain),
                {k: list(v) if isinstance(v, list) else None for k, v in plain.items()},
            )
            for name, v in plain.items():
                if isinstance(v, torch.Generator):
                    found[f"{label}.{path}.{name}"] = (v, v.get_state())
    return found


def assert_untouched(before, after):
    assert before.keys() == after.keys()
    for key, (was, value) in before.items():
        now, current = after[key]
        if isinstance(was, dict):
            assert was.keys() == now.keys(), key
            assert all(was[k] is now[k] for k in was), key
            assert value == current, key
        else:
            assert was is now and torch.equal(value, current), key


@pytest.mark.parametrize("engine", ["auto", "eager"])
@pytest.mark.parametrize("where", ["g", "d"])
@pytest.mark.parametrize("name", LAYERS)
def test_making_an_engine_leaves_networks_and_generators_as_they_were(name, where, engine):
    layer = LAYERS[name]()
    p = problem(
        generator(layer) if where == "g" else None,
        discriminator(middle=(layer,)) if where == "d" else None,
    )
    before, torchs = state_of(p), torch.get_rng_state()
    others = python_random.getstate(), str(numpy.random.get_state())
    engines.choose(p, engine)
    assert_untouched(before, state_of(p))
    assert torch.equal(torchs, torch.get_rng_state())
    assert others == (python_random.getstate(), str(numpy.random.get_state()))


def test_data_dependent_initialisation_happens_in_the_first_step():
    p = problem(d=discriminator(middle=(ActNorm(16),)))
    engine, _ = engines.choose(p)
    engine.run(1)
    layer = p.discriminator.body[3]
    assert layer.done and layer.first == 8
    assert layer.scale.detach().abs().max() < 1e3, "from real images, not from zeros"


def test_a_hook_is_called_by_steps_only_and_with_the_networks_own_modules():
    calls = []
    p = problem()
    names = {m: name for name, m in p.discriminator.named_modules()}
    for m in p.discriminator.modules():
        m.register_forward_hook(lambda m, *_: calls.append(names[m]))
    engine, _ = engines.choose(p)
    assert calls == []
    engine.run(2)
    assert len(calls) == 2 * 3 * len(names), "real, fake and G's update"


def test_a_hook_that_makes_the_shapes_fit_is_part_of_the_network():
    g = nn.Sequential(nn.Linear(5, 36), nn.Tanh())
    g.register_forward_hook(lambda m, _, out: out.view(-1, *SHAPE))
    engine, _ = engines.choose(problem(g))
    assert engine.run(1).isfinite().all()


def test_networks_that_cannot_be_copied_are_put_back(caplog):
    d = discriminator(middle=(ActNorm(16), Counts()))
    d.lock = threading.Lock()
    p = problem(d=d)
    before = state_of(p)
    with caplog.at_level(logging.WARNING, "fastgan"):
        engine, _ = engines.choose(p)
    assert caplog.text.count("the networks cannot be copied") == 1
    after = state_of(p)
    after["d.body.4"][1]["seen"] = before["d.body.4"][1]["seen"] = None  # a list is no attribute
    assert_untouched(before, after)
    assert engine.run(1).isfinite().all()


def test_a_function_that_knows_its_module_leaves_no_trace_in_it():
    d = discriminator(middle=(nn.BatchNorm1d(16),))
    norm, body = d.body[3], d.body
    d.forward = lambda x: body(x)
    p = problem(d=d)
    before = norm.running_mean.clone(), norm.num_batches_tracked.clone()
    engines.choose(p)
    assert torch.equal(before[0], norm.running_mean)
    assert torch.equal(before[1], norm.num_batches_tracked)


class Items(torch.utils.data.Dataset):
    """Counts how often it is read."""

    def __init__(self):
        self.samples, self.read = images().samples, 0

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        self.read += 1
        return self.samples[i]


def test_a_dataset_is_not_read_for_a_look():
    items = Items()
    source = data.open(items, budget_bytes=1, workers=0)
    read = items.read
    engines.choose(problem(source=source))
    assert items.read == read


@pytest.mark.parametrize("name", ["weight norm", "spectral norm"])
def test_computed_tensors_are_copied_without_their_history(name):
    layer = LAYERS[name]()
    layer(torch.ones(2, 16))
    layer.features = {"last": [layer.weight * 2]}
    (copy,) = probe.copied((layer,))
    torch.testing.assert_close(copy(torch.ones(2, 16)), layer(torch.ones(2, 16)))
    assert copy.features["last"][0].is_leaf


def test_copies_keep_what_belongs_to_the_network_and_no_other_hooks():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.utils.spectral_norm(nn.Linear(3, 3))
            self.register_forward_pre_hook(self.twice)

        def twice(self, m, inputs):
            return tuple(2 * x for x in inputs)

        def forward(self, x):
            return self.layer(x)

    net = Own()
    net.register_forward_hook(lambda *_: 1 / 0)
    net.layer.register_forward_hook(functools.partial(print, "seen"))
    (copy,) = probe.copied((net,))
    (own,) = copy._forward_pre_hooks.values()
    assert own.__self__ is copy and not copy._forward_hooks and not copy.layer._forward_hooks
    assert len(copy.layer._forward_pre_hooks) == 1
    (whole,) = probe.copied((net,), hooks=True)
    assert len(whole._forward_hooks) == 1
    assert len(net._forward_hooks) == 1 == len(net.layer._forward_hooks)
