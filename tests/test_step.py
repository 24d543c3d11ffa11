"""The step of `eager` against a loop written by hand: updates, penalties, averages, precision."""

import copy

import pytest
import torch
from pairs import by_hand, changed, discriminator, generator, images, problem, same, weights
from torch import nn

from fastgan import data, losses, random
from fastgan.distributed import World
from fastgan.engines.draws import PENALTY_STREAM
from fastgan.engines.eager import EagerEngine
from fastgan.models import Discriminator, Generator
from fastgan.random import Stream


@pytest.mark.parametrize("shared_fakes", [False, True])
@pytest.mark.parametrize("d_steps", [1, 2])
@pytest.mark.parametrize(
    ("g_middle", "d_middle"),
    [
        ((), (nn.Dropout(0.3),)),
        (
            (nn.Dropout(0.2), nn.BatchNorm1d(16)),
            (nn.Dropout(0.4), nn.BatchNorm1d(16), nn.Dropout(0.1)),
        ),
    ],
    ids=["plain", "norms and dropouts"],
)
def test_eager_is_the_loop_of_the_protocol(d_steps, g_middle, d_middle, shared_fakes):
    g = generator(*copy.deepcopy(g_middle)).double()
    d = discriminator(middle=copy.deepcopy(d_middle)).double()
    options = {"d_steps": d_steps, "ema": 0.9, "shared_fakes": shared_fakes}
    p, q = problem(g, d, **options), problem(copy.deepcopy(g), copy.deepcopy(d), **options)
    # 22 images in batches of 8: the third of each epoch's batches has 6.
    found = EagerEngine(p).run(7)
    expected = by_hand(q, 7)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for mine, theirs in ((g, q.generator), (d, q.discriminator), (p.ema, q.ema)):
        for a, b in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)
    assert not same(weights(p.ema), weights(g))


@pytest.mark.parametrize("name", ["r1", "wgan-gp", "approximate-r1"])
def test_a_penalty_is_in_the_updates_and_not_in_the_losses(name):
    """Against the step written by hand in float64, with a lazy penalty and two updates of D."""

    def make():
        torch.manual_seed(6)
        d = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 1))
        return problem(
            generator().double(), d.double(), loss="wasserstein", d_steps=2,
            penalties=f"{name}:3:3",
        )  # fmt: skip

    p, q = make(), make()
    found = EagerEngine(p).run(5)
    g, d = q.generator, q.discriminator
    adam_g, adam_d = q.optimizer_g, q.optimizer_d
    for u in range(10):
        real = (q.data.samples[q.data.batch_indices(q.seed, u, 8)].float() * (2 / 255) - 1).double()
        with torch.no_grad():
            fake = g(random.normal(q.seed, Stream.LATENT_D, u, (len(real), 5)).double())
        loss = d(fake).mean() - d(real).mean()
        total = loss
        if u % 3 == 0:
            x = real
            if name == "wgan-gp":
                z = random.normal(q.seed, PENALTY_STREAM, u, (len(real),))
                eps = (0.5 * (1 + torch.erf(z / 2**0.5))).double().view(-1, 1, 1, 1)
                x = fake + eps * (real - fake)
            # The slope by the chain rule, layer by layer.
            first, last = d[1], d[3]
            h = torch.tanh(first(x.flatten(1)))
            slope = ((1 - h**2) * last.weight) @ first.weight
            norm2 = slope.pow(2).sum(1)
            one = norm2.mean() / 2 if name == "r1" else (norm2.sqrt() - 1).pow(2).mean()
            if name == "approximate-r1":
                noise = random.normal(q.seed, Stream.NEARBY, u, tuple(real.shape)).double()
                one = ((d(real + 0.01 * noise) - d(real)) / 0.01).square().mean() / 2
            total = loss + 3 * 3.0 * one
        adam_d.zero_grad()
        total.backward()
        adam_d.step()
        if u % 2:
            adam_g.zero_grad()
            g_loss = -d(g(random.normal(q.seed, Stream.LATENT_G, u // 2, (len(real), 5)).double()))
            g_loss.mean().backward()
            adam_g.step()
            expected = torch.stack([loss, g_loss.mean()]).float()
            torch.testing.assert_close(found[u // 2, :2], expected, rtol=1e-5, atol=1e-7)
    for a, b in zip(weights(p.discriminator), weights(d), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_fp16_trains_with_float32_weights_and_scaled_losses():
    a, b = problem(batch_size=16), problem(batch_size=16, precision="fp16")
    assert a.scalers is None and len(b.scalers) == 2
    fp32, fp16 = EagerEngine(a).run(20), EagerEngine(b).run(20)
    assert all(w.dtype == torch.float32 for w in b.generator.parameters())
    assert not torch.equal(fp32, fp16)
    torch.testing.assert_close(fp32, fp16, rtol=0.01, atol=0.003)


def test_a_scaled_penalty_has_the_gradients_of_one_that_is_not():
    """Slopes of 1e-6 vanish in float16 unless they are scaled, in both backward passes."""

    def small(precision):
        torch.manual_seed(6)
        d = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 1))
        with torch.no_grad():
            d[3].weight.mul_(1e-5)
        p = problem(d=d, precision=precision, penalties="r1:1e5")
        return changed(
            p,
            optimizer_d=torch.optim.SGD(d.parameters(), lr=1e3),
            optimizer_g=torch.optim.SGD(p.generator.parameters(), lr=0.0),
        )

    p, q = small("fp32"), small("fp16")
    before = weights(p.discriminator)
    EagerEngine(p).run(1), EagerEngine(q).run(1)
    for old, a, b in zip(before, weights(p.discriminator), weights(q.discriminator), strict=True):
        torch.testing.assert_close(
            a - old, b - old, rtol=0.05, atol=float((a - old).abs().max()) / 50
        )


def test_the_reference_pair_on_real_digits():
    p = problem(Generator(20), Discriminator(), data.open("digits"), latent_dim=20, batch_size=64)
    q = problem(
        Generator(20),
        nn.Sequential(nn.Flatten(), *Discriminator().model[:-1]),
        p.data,
        latent_dim=20,
        batch_size=64,
    )
    q.generator.load_state_dict(p.generator.state_dict())
    for mine, theirs in zip(
        q.discriminator.parameters(), p.discriminator.parameters(), strict=True
    ):
        mine.data.copy_(theirs)
    found, expected = EagerEngine(p).run(10), by_hand(q, 10)
    assert found.dtype == torch.float32 and found.shape == (10, 4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_chunks_change_nothing_and_step_can_be_set():
    def make():
        torch.manual_seed(2)
        return problem(d=discriminator(middle=(nn.Dropout(0.5),)))

    whole, cut = EagerEngine(make()), EagerEngine(make())
    found = whole.run(7)
    parts = torch.cat([cut.run(1), cut.run(0), cut.run(4), cut.run(2)])
    assert torch.equal(found, parts) and cut.step == whole.step == 7
    assert same(weights(whole.problem.generator), weights(cut.problem.generator))
    late = EagerEngine(make())
    late.step = 7
    assert not torch.equal(late.run(1), EagerEngine(make()).run(1))


def test_no_network_computes_gradients_for_the_other_ones_update():
    p = problem(d_steps=2)
    counts = {"g": 0, "d": 0}

    def count(which):
        def hook(_):
            counts[which] += 1

        return hook

    for which, network in (("g", p.generator), ("d", p.discriminator)):
        next(network.parameters()).register_hook(count(which))
    EagerEngine(p).run(3)
    assert counts == {"d": 6, "g": 3}
    assert all(w.grad is None for w in p.discriminator.parameters())


def test_frozen_weights_stay_frozen_and_the_others_come_back():
    p = problem()
    frozen = next(p.discriminator.parameters()).requires_grad_(False)
    before = frozen.clone()
    needed = [w.requires_grad for w in p.discriminator.parameters()]
    EagerEngine(p).run(2)
    assert torch.equal(frozen, before)
    assert [w.requires_grad for w in p.discriminator.parameters()] == needed
    assert needed.count(False) == 1


# --- rates, precision, changes from outside -------------------------------------------------------


def test_schedule_scales_both_rates_and_leaves_the_base():
    p = problem(lr=(1e-3, 5e-4), lr_schedule=lambda step: 0.0 if step >= 2 else 1.0)
    engine = EagerEngine(p)
    engine.run(2)
    before = weights(p.generator) + weights(p.discriminator)
    engine.run(3)
    assert same(before, weights(p.generator) + weights(p.discriminator))
    assert [p.optimizer_g.param_groups[0]["lr"], p.optimizer_d.param_groups[0]["lr"]] == [
        1e-3,
        5e-4,
    ]
    p = problem(lr=(1e-3, 5e-4), lr_schedule=lambda step: float("nan"))
    engine = EagerEngine(p)
    engine.step = 5
    with pytest.raises(ValueError, match=r"lr_schedule\(5\) returned nan"):
        engine.run(1)
    assert p.optimizer_g.param_groups[0]["lr"] == 1e-3


def test_weights_and_rates_changed_between_runs_count():
    p = problem()
    engine = EagerEngine(p)
    engine.run(2)
    for optimizer in (p.optimizer_g, p.optimizer_d):
        optimizer.param_groups[0]["lr"] = 0.0
    with torch.no_grad():
        p.generator.body[1].weight.fill_(0.5)
    engine.run(2)
    assert (p.generator.body[1].weight == 0.5).all()


def test_bf16_trains_with_float32_weights_and_losses():
    a, b = problem(batch_size=16), problem(batch_size=16, precision="bf16")
    fp32, bf16 = EagerEngine(a).run(20), EagerEngine(b).run(20)
    assert bf16.dtype == torch.float32
    assert all(w.dtype == torch.float32 for w in b.generator.parameters())
    assert not torch.equal(fp32, bf16)
    torch.testing.assert_close(fp32, bf16, rtol=0.03, atol=0.01)


# --- losses of both scores, several penalties, statistics, batches, ranks -------------------------


def curved():
    """A discriminator whose slope can be written by hand, layer by layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def slope_of(d, x):
    first, last = d[1], d[3]
    h = torch.tanh(first(x.flatten(1)))
    return ((1 - h**2) * last.weight) @ first.weight


@pytest.mark.parametrize("d_steps", [1, 2])
def test_a_relativistic_pair_with_r1_and_r2_is_the_loop_written_by_hand(d_steps):
    """R3GAN's objective (N. Huang et al., 2024) with lazy penalties of two rhythms."""

    def make():
        torch.manual_seed(6)
        penalties = ["r1:3:2", "r2:5:3"]
        return problem(
            generator().double(), curved(), loss="relativistic", penalties=penalties,
            d_steps=d_steps,
        )  # fmt: skip

    p, q = make(), make()
    found = EagerEngine(p).run(6)
    g, d = q.generator, q.discriminator
    for u in range(6 * d_steps):
        real = q.data.samples[q.data.batch_indices(q.seed, u, 8)].double() * (2 / 255) - 1
        with torch.no_grad():
            fake = g(random.normal(q.seed, Stream.LATENT_D, u, (len(real), 5)).double())
        on_real, on_fake = d(real).flatten(), d(fake).flatten()
        loss = total = torch.nn.functional.softplus(on_fake - on_real).mean()
        if u % 2 == 0:
            total = total + 2 * 3 / 2 * slope_of(d, real).square().sum(1).mean()
        if u % 3 == 0:
            total = total + 3 * 5 / 2 * slope_of(d, fake).square().sum(1).mean()
        q.optimizer_d.zero_grad()
        total.backward()
        q.optimizer_d.step()
        if (u + 1) % d_steps == 0:
            t = u // d_steps
            made = g(random.normal(q.seed, Stream.LATENT_G, t, (len(real), 5)).double())
            g_loss = torch.nn.functional.softplus(d(real) - d(made)).mean()
            q.optimizer_g.zero_grad()
            g_loss.backward()
            q.optimizer_g.step()
            expected = torch.stack([loss, g_loss, on_real.mean(), on_fake.mean()]).float()
            torch.testing.assert_close(found[t], expected.detach(), rtol=1e-5, atol=1e-6)
    for mine, theirs in ((p.generator, g), (p.discriminator, d)):
        for a, b in zip(weights(mine), weights(theirs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_penalties_at_one_place_share_its_pass():
    calls = []
    p = problem(d=curved(), penalties=["wgan-gp", "wgan-gp:1", "r1", "r1:3", "r2"])
    engine = EagerEngine(p)
    p.discriminator.register_forward_hook(lambda *_: calls.append(1))
    engine.run(1)
    assert len(calls) == 4, "real, fake, between, and G's update"


@pytest.mark.parametrize("d_steps", [1, 3])
def test_dropping_the_last_batch(d_steps):
    g, d = generator().double(), discriminator().double()
    options = {"drop_last": True, "d_steps": d_steps, "ema": 0.5}
    p, q = problem(g, d, **options), problem(copy.deepcopy(g), copy.deepcopy(d), **options)
    sizes = []
    d.register_forward_hook(lambda m, inputs, _: sizes.append(len(inputs[0])))
    found = EagerEngine(p).run(5)
    torch.testing.assert_close(found, by_hand(q, 5), rtol=1e-6, atol=1e-7)
    assert set(sizes) == {8}


@pytest.mark.parametrize("scores", ["logits", "probabilities"])
def test_statistics_are_means_of_what_the_loss_works_on(scores):
    known = losses.LOSSES["non-saturating"]

    def cross_entropy(real, fake):
        return -(real.log().mean() + (1 - fake).log().mean())

    mine = known
    if scores == "probabilities":
        mine = losses.Loss("bce", cross_entropy, lambda fake: -fake.log().mean(), scores=scores)
    p = problem(d=discriminator(nn.Sigmoid()), loss=mine)
    (row,) = EagerEngine(p).run(1)
    # At the first update, before any weight has moved.
    q = problem(d=discriminator(nn.Sigmoid()))
    q.generator.load_state_dict(problem().generator.state_dict())
    assert (0 < row[2] < 1) == (scores == "probabilities")
    assert row[2] != row[3]


def two_halves(**options):
    """What a step of plain descent moves: by one process, and by each of two ranks that are one."""

    class Pair(World):
        def rows(self, batch):
            return range(self.rank * batch // 2, (self.rank + 1) * batch // 2)

        def sum_(self, tensor):
            return tensor

        def means(self, mine, batch):
            return dict(mine)

    def gradients(world):
        torch.manual_seed(3)
        d = discriminator(middle=(nn.Dropout(0.4),)).double()
        g = generator(nn.Dropout(0.3)).double()
        p = problem(g, d, images(24), optimizer=torch.optim.SGD, lr=1.0, **options)
        before = weights(d)
        EagerEngine(changed(p, world=world)).run(1)
        return [a - b for a, b in zip(before, weights(d), strict=True)]

    return gradients(World()), [gradients(Pair(rank, 2)) for rank in (0, 1)]


def test_ranks_have_their_rows_of_the_batch_the_noise_and_the_masks():
    """Gradients of the halves together are those of the whole."""
    whole, halves = two_halves(penalties=["wgan-gp", "r1"])
    for a, b, c in zip(whole, *halves, strict=True):
        torch.testing.assert_close(a, b + c)
        assert not torch.equal(b, c)


def test_gradients_and_weights_are_clipped_and_g_has_updates_of_its_own():
    """Against the step written by hand, with plain gradient descent."""
    torch.manual_seed(3)
    g, d = generator().double(), discriminator().double()
    p = problem(
        g, d, optimizer="sgd", lr=0.5, g_steps=2, grad_clip=0.05, weight_clip=0.1, loss="hinge"
    )
    h, e = copy.deepcopy(g), copy.deepcopy(d)
    EagerEngine(p).run(2)

    def move(network, loss):
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        norm = torch.stack([x.norm() for x in gradients]).norm()
        assert norm > 0.05
        with torch.no_grad():
            for w, x in zip(network.parameters(), gradients, strict=True):
                w.sub_(0.5 * 0.05 * x / norm)

    def latents(stream, update):
        return random.normal(p.seed, stream, update, (8, *p.latent.shape)).double()

    for t in range(2):
        real = p.data.batch(p.seed, t, 8).images.double()
        fake = h(latents(Stream.LATENT_D, t)).detach()
        move(e, (1 - e(real)).relu().mean() + (1 + e(fake)).relu().mean())
        for w in e.parameters():
            w.data.clamp_(-0.1, 0.1)
        for k in range(2):
            move(h, -e(h(latents(Stream.LATENT_G, 2 * t + k))).mean())
    for mine, theirs in ((g, h), (d, e)):
        for a, b in zip(weights(mine), weights(theirs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert max(w.abs().max() for w in d.parameters()) <= 0.1
