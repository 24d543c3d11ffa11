"""A discriminator that judges several samples together, in the engines that run any modules."""

import copy

import pytest
import torch
from pairs import SHAPE, by_hand, changed, images, problem
from recordings import packed
from small_runs import own
from torch import nn

from fastgan import losses, random
from fastgan.distributed import World
from fastgan.engines import scores
from fastgan.engines.draws import AROUND_STREAM, PENALTY_STREAM
from fastgan.engines.eager import EagerEngine
from fastgan.nn import Pack


def test_rows_are_put_side_by_side():
    x = torch.arange(24.0).view(6, 2, 2)
    assert torch.equal(Pack(3)(x), x.reshape(2, 12)) and torch.equal(Pack(1)(x), x.flatten(1))
    assert Pack(4)(x[:0]).shape == (0, 16)
    assert repr(Pack(3)) == "Pack(3)" and not Pack(3).state_dict()
    with pytest.raises(ValueError, match=r"Pack\(4\) was given 6 rows; use a batch_size that is"):
        Pack(4)(x)
    for wrong in (0, -1, 2.5, "2", True, None):
        with pytest.raises(ValueError, match="Pack: rows is .*expected an integer of at least 1"):
            Pack(wrong)


@pytest.mark.parametrize("pack", [1, 2])
def test_a_step_is_that_of_a_plain_loop(pack):
    # Of 22 images the last batch of an epoch has 6.
    p, q = (packed(pack, d_steps=2) for _ in range(2))
    scores.check(p)
    found = EagerEngine(p).run(5)
    torch.testing.assert_close(found, by_hand(q, 5), rtol=1e-5, atol=1e-6)
    for mine, plain in zip(p.discriminator.parameters(), q.discriminator.parameters(), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [lambda s: s, lambda s: s.squeeze(1)], ids=["column", "row"])
@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_loss_is_of_the_scores_of_packs(name, shape):
    p = packed(loss=name, seed=5)
    p.discriminator.append(Shaped(shape))
    p.discriminator[3].p = 0.0
    real = (p.data.samples[random.permutation(5, 0, 22)[:8]].float() * (2 / 255) - 1).view(4, -1)
    fake = p.generator(random.normal(5, random.Stream.LATENT_D, 0, (8, 5))).detach().view(4, -1)
    on_real, on_fake = (p.discriminator[1:](x).flatten() for x in (real, fake))
    row = EagerEngine(p).run(1)[0]
    torch.testing.assert_close(row[0], losses.loss(name).d_loss(on_real, on_fake).detach())
    torch.testing.assert_close(row[2:], torch.stack([on_real.mean(), on_fake.mean()]).detach())


class Shaped(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def penalised(penalties):
    """A problem, and D's gradient in its first update."""
    p = packed(penalties=penalties, loss="wasserstein", betas=(0.0, 0.9), seed=5)
    p.generator.double(), p.discriminator.double()
    p.discriminator[3].p = 0.0
    first = copy.deepcopy(p)
    EagerEngine(p).run(1)
    return first, [p.optimizer_d.state[w]["exp_avg"] for w in p.discriminator.parameters()]


@pytest.mark.parametrize("name", ["r1", "r2", "wgan-gp", "dragan"])
def test_a_penalty_is_of_the_slope_of_a_packs_score_by_all_of_its_rows(name):
    pack = 2
    p, found = penalised(name)
    found = [mine - without for mine, without in zip(found, penalised(None)[1], strict=True)]
    real = (p.data.samples[random.permutation(5, 0, 22)[:8]].float() * (2 / 255) - 1).double()
    fake = p.generator(random.normal(5, random.Stream.LATENT_D, 0, (8, 5)).double()).detach()
    x = real if name == "r1" else fake
    if name == "wgan-gp":
        share = torch.special.ndtr(random.normal(5, PENALTY_STREAM, 0, (8,)))[::pack]
        share = share.double().repeat_interleave(pack).view(8, 1, 1, 1)
        x = share * real + (1 - share) * fake
    if name == "dragan":
        drawn = torch.special.ndtr(random.normal(5, AROUND_STREAM, 0, (8, 37))).double()
        alpha = drawn[::pack, 0].repeat_interleave(pack).view(8, 1, 1, 1)
        x = real + alpha * 0.5 * real.std(correction=0) * drawn[:, 1:].view(8, 1, 6, 6)
    x = x.view(4, 72).requires_grad_()
    d = p.discriminator[1:]
    (slope,) = torch.autograd.grad(d(x).sum(), x, create_graph=True)
    value = slope.square().sum(1)
    value = value / 2 if name in ("r1", "r2") else (value.sqrt() - 1).square()
    expected = torch.autograd.grad(10 * value.mean(), [*d.parameters()], allow_unused=True)
    for mine, plain in zip(found, expected, strict=True):
        plain = torch.zeros_like(mine) if plain is None else plain
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-6)
    assert max(mine.abs().max() for mine in found) > 1e-2


def test_a_penalty_by_differences_is_that_of_packs_too():
    p = packed(penalties="approximate-r1:10:1:0.1", loss="wasserstein")
    assert EagerEngine(p).run(3).isfinite().all()


@pytest.mark.parametrize("penalties", [None, "wgan-gp", "approximate-r1"])
def test_parts_of_whole_packs_are_the_batch(penalties):
    runs = []
    for accumulate in (1, 2):
        torch.manual_seed(4)
        p = packed(penalties=penalties, accumulate=accumulate, drop_last=True)
        scores.check(p)
        runs.append((EagerEngine(p).run(4), p))
    (whole, p), (parts, q) = runs
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)
    for a, b in zip(p.discriminator.parameters(), q.discriminator.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


WHOLE = "one score per image, .* or one for each n images"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda: packed(5),
            r"Pack\(5\) was given 8 rows; use a batch_size that is",
        ),
        (
            lambda: packed(4),
            r"an epoch's last batch has 6 of 22 samples, .*Pack\(4\) was given 6 rows.*drop_last",
        ),
        (lambda: packed(4, accumulate=4, drop_last=True), "judges 4 samples together, and a batch"),
        (lambda: packed(accumulate=3, drop_last=True), "parts of 2 and 3 samples .ranks: 1, accum"),
        (
            lambda: changed(packed(4, drop_last=True), world=World(0, 4)),
            "parts of 2 samples .ra",
        ),
        (lambda: problem(d=Whole(lambda s: s.mean().view(1))), WHOLE),
        (lambda: problem(d=Whole(lambda s: s.mean())), WHOLE),
        (lambda: problem(d=Whole(lambda s: s[:2])), WHOLE),
        (lambda: problem(d=Whole(lambda s: s.view(-1, 2).mean(0))), WHOLE),
        (
            lambda: problem(d=Whole(lambda s: s[: len(s) // 4])),
            "that does not fit: discr.*one s",
        ),
    ],
)
def test_what_is_no_pack_of_a_batch_is_an_error_that_says_what_to_do(change, message):
    with pytest.raises(ValueError, match=message):
        scores.check(change())


class Whole(nn.Module):
    """Scores, and what becomes of them."""

    def __init__(self, function):
        super().__init__()
        self.linear, self.function = nn.Linear(36, 1), function

    def forward(self, x):
        return self.function(self.linear(x.flatten(1)))


def test_a_run_with_packs_goes_on_as_if_it_had_not_stopped(tmp_path):
    def pair():
        torch.manual_seed(2)
        g = nn.Sequential(nn.Linear(6, 36), nn.Tanh(), nn.Unflatten(1, (1, 6, 6)))
        return g, nn.Sequential(Pack(2), nn.Linear(72, 9), nn.ReLU(), nn.Linear(9, 1))

    options = {"data": images(24), "engine": "eager", "penalties": "wgan-gp", "latent_dim": 6}
    whole = own(pair=pair, steps=8, **options)
    whole.fit()
    half = own(pair=pair, steps=4, out=tmp_path / "run", **options)
    half.fit()
    half.close()
    more = type(half).resume(tmp_path / "run", *pair(), images(24))
    more.fit(steps=8)
    for a, b in zip(whole.discriminator.parameters(), more.discriminator.parameters(), strict=True):
        assert torch.equal(a, b)


class Between:
    """A method that asks for a penalty before or after D has judged anything."""

    def __init__(self, first):
        self.first = first

    def d_loss(self, step):
        if self.first:
            return step.penalty("wgan-gp") + step.score(step.real).mean()
        return step.score(step.real).mean() + step.penalty("wgan-gp")

    def g_loss(self, step):
        return -step.score(step.fake).mean()


def test_a_method_has_a_penalty_of_packs_once_d_has_judged_some():
    assert EagerEngine(packed(method=Between(False))).run(2)[:, 0].isfinite().all()
    with pytest.raises(ValueError, match="one score for 2 samples together, .*judge step.real bef"):
        EagerEngine(packed(method=Between(True))).run(1)


def test_packs_that_nobody_named_are_told_of(caplog):
    def told(d):
        caplog.clear()
        p = packed(2)
        p.discriminator[0] = d
        scores.check(p)
        return caplog.text

    assert "has one score for 2 samples together" in told(Shaped(lambda x: x.view(-1, 2 * 36)))
    assert not told(Pack(2))


def test_a_generator_of_packs_is_told_its_number_of_samples():
    g = nn.Sequential(nn.Linear(5, 36), nn.Unflatten(1, SHAPE), Shaped(lambda x: x[::2]))
    with pytest.raises(ValueError, match="generator makes 4 samples where 8 are asked for"):
        scores.check(packed(2, g=g))
