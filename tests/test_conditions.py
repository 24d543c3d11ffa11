"""What belongs to a sample, and which network is given it."""

import re

import pytest
import torch
import torch.nn.functional as F
from methods import NAMED, Conditional, D, G, Heads, Info, Patches, labelled, plain_d, plain_g
from pairs import same, weights
from small_runs import QUICK, SHAPE, pixels
from torch import nn

from fastgan import Trainer, data, random, terms
from fastgan.engines import choose
from fastgan.engines.draws import CONDITION_STREAM, HostDraws
from fastgan.engines.eager import EagerEngine
from fastgan.models.sn_resnet import SNResNetDiscriminator, SNResNetGenerator
from fastgan.problem import make_problem
from fastgan.random import Stream


def test_networks_that_take_a_condition_are_given_it_by_the_plain_losses():
    for penalties in ((), "wgan-gp", ["r1", "r2"]):
        torch.manual_seed(3)
        p = make_problem(
            G(), D(), labelled(), batch_size=8, latent_dim=5, device="cpu", penalties=penalties
        )
        assert p.conditioned == (True, True)
        before = weights(p.generator)
        engine, said = choose(p)
        assert engine.name == "eager" and "add on a condition has no fused form" in said
        assert engine.run(4).isfinite().all() and not same(weights(p.generator), before)


class Perhaps(nn.Module):
    """A network that does without the condition, too."""

    def __init__(self, network):
        super().__init__()
        self.module = network  # which makes it no wrapper
        self.given = []

    def forward(self, x, labels=None):
        self.given.append(labels is not None)
        return self.module(x)


def test_a_network_that_does_without_is_given_a_condition_where_there_is_one():
    for source, there in ((data.open(pixels()), False), (labelled(), True)):
        g, d = Perhaps(plain_g()), Perhaps(plain_d())
        trainer = Trainer(g, d, source, **QUICK)
        trainer.fit(steps=2)
        assert trainer.problem.conditioned == (there, there)
        assert set(g.given) == set(d.given) == {there}
        assert trainer.sample(4).shape == (4, *SHAPE)


def test_scores_penalties_and_terms_of_a_method_hand_on_the_condition():
    class Critic:
        def d_loss(self, step):
            loss = step.score(step.fake, step.fake_cond).mean()
            loss = loss - step.score(step.real, step.cond).mean()
            return loss + step.penalty("wgan-gp:10") + step.penalty("r1")

        def g_loss(self, step):
            return -step.score(step.fake, step.fake_cond).mean()

    given = Perhaps(plain_d())
    for d, layer in ((D(), "body.0"), (given, "module.1")):
        matching = {"features": (1, terms.FeatureMatching(layer))}
        trainer = Trainer(G(), d, labelled(), method=Critic(), terms=matching, d_steps=5, **QUICK)
        trainer.fit(steps=3)
    assert all(given.given) and len(given.given) == 3 * (5 * 4 + 3)


def test_fake_conditions_are_drawn_from_the_datas_own_or_are_the_same():
    seen = []

    class Looking(Conditional):
        def d_loss(self, step):
            seen.append((step.cond, step.fake_cond))
            return super().d_loss(step)

    labels = (torch.arange(50) % 10 == 0).long()  # one in ten
    for how in ("drawn", "same"):
        seen.clear()
        torch.manual_seed(3)
        p = make_problem(
            G(), D(), data.open((pixels(), labels)), method=Looking(), batch_size=25,
            latent_dim=5, device="cpu", fake_condition=how,
        )  # fmt: skip
        EagerEngine(p).run(40)
        alike = [torch.equal(a, b) for a, b in seen]
        assert all(alike) if how == "same" else not all(alike)
        share = torch.cat([b for _, b in seen]).double().mean()
        assert abs(share - 0.1) < 0.04


def test_a_condition_that_is_an_image_is_handed_on():
    class ToImage(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 1, 3, 1, 1))

        def forward(self, condition):
            return torch.tanh(self.body(condition))

    torch.manual_seed(3)
    source = data.open((pixels(), torch.rand(50, *SHAPE)))
    trainer = Trainer(
        ToImage(), Patches(), source, method=Conditional(), terms={"l1": (100, terms.l1)},
        **{**QUICK, "latent_dim": None},
    )  # fmt: skip
    trainer.fit(steps=10)
    line = trainer.history[-1]
    assert 0 < line["l1"] < 2 and line["d_loss"] > 0
    assert trainer.sample(4).shape == (4, *SHAPE)
    other = trainer.sample(4, condition=torch.zeros(4, *SHAPE))
    assert not torch.equal(other, trainer.sample(4))


def test_samples_by_conditions_of_data_that_are_read_as_needed():
    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return 50

        def __getitem__(self, i):
            return pixels()[i], torch.full(SHAPE, float(i))

    source = data.open(Pairs(), budget_bytes=1)
    before = torch.get_rng_state()
    first = source.first_conditions(52)
    assert torch.equal(first[:, 0, 0, 0], torch.arange(52.0) % 50)
    assert torch.equal(torch.get_rng_state(), before)
    in_memory = data.open((pixels(), torch.arange(50.0)[:, None, None, None].expand(50, *SHAPE)))
    assert torch.equal(in_memory.first_conditions(52), first)
    assert data.open(pixels()).first_conditions(3) is None


def test_samples_of_a_class():
    trainer = Trainer(G(), D(), labelled(), method=Conditional(), **QUICK)
    trainer.fit(steps=3)
    assert torch.equal(trainer.sample(9), trainer.sample(9, condition=[0, 1, 2] * 3))
    assert not torch.equal(trainer.sample(9), trainer.sample(9, condition=2))
    with pytest.raises(ValueError, match=r"condition is \[2\]; expected \[9\]"):
        trainer.sample(9, condition=[0, 1])
    plain = Trainer(plain_g(), plain_d(), labelled(), **QUICK)
    with pytest.raises(ValueError, match="the generator takes none"):
        plain.sample(9, condition=2)


@pytest.mark.parametrize("method", [None, Info])
def test_no_conditions_are_drawn_that_nobody_takes(method, monkeypatch):
    asked = []
    monkeypatch.setattr(HostDraws, "conditions", lambda *args: asked.append(args))
    networks, latent = ((plain_g(8), Heads(more=2)), NAMED) if method else (
        (plain_g(), plain_d()), 5
    )  # fmt: skip
    options = {"batch_size": 8, "latent_dim": latent, "device": "cpu"}
    options |= {"method": method()} if method else {}
    EagerEngine(make_problem(*networks, labelled(), **options)).run(2)
    assert asked == []


class Squeezed(nn.Module):
    """A network that takes labels [b, 1]."""

    def __init__(self, network):
        super().__init__()
        self.network, self.seen = network, []

    def forward(self, x, y):
        self.seen.append(y)
        return self.network(x, y[:, 0])


def test_labels_of_shape_n_1_are_drawn_too():
    source = data.open((pixels(), (torch.arange(50) % 3)[:, None]))
    g = Squeezed(G())
    trainer = Trainer(g, Squeezed(D()), source, **QUICK)
    trainer.fit(steps=3)
    assert all(y.shape[1:] == (1,) and y.dtype == torch.int64 for y in g.seen)
    batches = [source.batch(0, update, 8).condition for update in range(3)]
    assert any(not torch.equal(y, b) for y, b in zip(g.seen[1::2], batches, strict=False))
    assert torch.equal(trainer.sample(6), trainer.sample(6, condition=[0, 1, 2] * 2))
    assert trainer.sample(6, condition=torch.full((6, 1), 2)).shape == (6, *SHAPE)
    assert torch.equal(trainer.sample(6, condition=2), trainer.sample(6, condition=[2] * 6))


class Any(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, *args):
        return self.network(args[0])


class ByKeyword(Any):
    def forward(self, x, *, labels=None):
        return self.network(x)


@pytest.mark.parametrize(("kind", "how"), [(Any, "[*]args"), (ByKeyword, "labels by keyword")])
def test_a_network_that_may_mean_to_take_a_condition_and_is_given_none_is_told(kind, how, caplog):
    g, d = kind(plain_g()), kind(plain_d())
    options = {"batch_size": 8, "latent_dim": 5, "device": "cpu"}
    p = make_problem(g, d, labelled(), **options)
    assert p.conditioned == (False, False)
    for name in ("generator", "discriminator"):
        assert re.search(f"the {name}'s forward takes {how} and is not given", caplog.text)
    caplog.clear()
    make_problem(g, d, data.open(pixels()), **options)
    make_problem(plain_g(), kind(plain_d()), labelled(), method=Conditional(), **options)
    assert not caplog.text


def test_a_step_of_the_class_conditional_pair_by_hand():
    images = torch.rand(24, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = torch.randperm(24, generator=torch.Generator().manual_seed(1)) % 3

    def made():
        torch.manual_seed(3)
        return make_problem(
            SNResNetGenerator(5, 32, 1, 4, 3).double(), SNResNetDiscriminator(32, 1, 4, 3).double(),
            data.open((images, labels)), batch_size=8, latent_dim=5, d_steps=2, loss="hinge",
            lr=0.01, optimizer=torch.optim.SGD, device="cpu", seed=7,
        )  # fmt: skip

    p, by_hand = made(), made()
    EagerEngine(p).run(3)
    g, d = by_hand.generator.train(), by_hand.discriminator.train()
    # Adam would make whole steps of rounding: a bias before a BatchNorm has no gradient.
    sgd_g, sgd_d = (torch.optim.SGD(m.parameters(), 0.01) for m in (g, d))

    def asked(player, update):  # classes as often as the data have them
        uniform = torch.special.ndtr(random.normal(7, CONDITION_STREAM + player, update, (8,)))
        return labels[(uniform * 24).long()]

    for u in range(6):
        rows = random.permutation(7, u // 3, 24)[u % 3 * 8 :][:8]
        y = asked(0, u)
        fake = g(random.normal(7, Stream.LATENT_D, u, (8, 5)).double(), y).detach()
        real = images[rows].double()
        loss = F.relu(1 - d(real, labels[rows])).mean() + F.relu(1 + d(fake, y)).mean()
        sgd_d.zero_grad()
        loss.backward()
        sgd_d.step()
        if u % 2:
            y = asked(1, u // 2)
            z = random.normal(7, Stream.LATENT_G, u // 2, (8, 5)).double()
            loss = -d(g(z, y), y).mean()
            sgd_g.zero_grad()
            loss.backward()
            sgd_g.step()
    for mine, theirs, first in zip(
        *((*q.generator.parameters(), *q.discriminator.parameters()) for q in (p, by_hand, made())),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)
        if mine.shape[:1] == (3,):  # of each class
            assert (mine - first).abs().amax(1).min() > 1e-4
