"""What images go through before D sees them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from methods import labelled, plain_d, plain_g
from pairs import discriminator, images, problem, weights
from recordings import Again
from small_runs import QUICK, assert_same_bits, every_bit
from torch import nn

from fastgan import Trainer, augment, data, engines, losses, random
from fastgan.augment import Augmentation
from fastgan.config import ConfigError
from fastgan.engines.eager import EagerEngine
from fastgan.engines.graph import GraphEngine

CPU = torch.device("cpu")
EVERY = ("diffaugment:color", "diffaugment:translation", "diffaugment:cutout", "ada:blit",
         "ada:geom", "ada:color")  # fmt: skip


def made(words, p=1.0, **options):
    """With every gate open, unless said otherwise."""
    found = Augmentation(augment.read(words), CPU, 8, **options)
    if found.adapts:
        found.state[0] = p
    return found


def drawn(a, b, seed=0):
    return random.normal(seed, 1, 0, (b, a.columns))


def uniform(a, b):
    return torch.special.ndtr(drawn(a, b)).double()


@given(
    words=st.sampled_from([*EVERY, "diffaugment", "ada"]),
    channels=st.sampled_from([1, 3, 4]),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=20, deadline=None)
def test_any_images_are_transformed_and_derived_twice(words, channels, height, width, seed):
    a = made(words)
    x = torch.randn(3, channels, height, width, generator=torch.Generator().manual_seed(seed))
    x = x.double().requires_grad_()
    normals = drawn(a, 3, seed)
    (out,) = a(x, normals)
    assert out.shape == x.shape and out.dtype == x.dtype and out.isfinite().all()
    assert torch.equal(a(x, normals)[0], out), "a function of the numbers"
    assert torch.autograd.gradcheck(lambda x: a(x, normals)[0], x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: a(x, normals)[0].pow(2), x, fast_mode=True)


def test_diffaugment_is_its_definition():
    x = torch.randn(40, 3, 8, 16).double()
    a = made("diffaugment:color")
    u = uniform(a, 40).view(40, 3, 1, 1, 1)
    expected = []
    for image, (brightness, saturation, contrast) in zip(x, u, strict=True):
        image = image + brightness - 0.5
        grey = image.mean(0)
        image = grey + 2 * saturation * (image - grey)
        expected.append(image.mean() + (0.5 + contrast) * (image - image.mean()))
    torch.testing.assert_close(a(x, drawn(a, 40))[0], torch.stack(expected))

    a = made("diffaugment:translation")
    moved = a(x, drawn(a, 40))[0]
    seen = set()
    for image, out, (v, w) in zip(x, moved, uniform(a, 40), strict=True):
        down, right = int(v * 3) - 1, int(w * 5) - 2  # an eighth of either side
        seen.add((down, right))
        wide = nn.functional.pad(image, (2, 2, 1, 1))
        assert torch.equal(out, wide[:, 1 - down : 9 - down, 2 - right : 18 - right])
    assert len(seen) > 10

    a = made("diffaugment:cutout")
    ones = a(torch.ones(40, 1, 8, 16), drawn(a, 40))[0]
    for out, (v, w) in zip(ones, uniform(a, 40), strict=True):
        left = torch.ones(8, 16)
        y, z = int(v * 9) - 2, int(w * 17) - 4  # half of either side, its middle anywhere
        left[max(y, 0) : y + 4, max(z, 0) : z + 8] = 0
        assert torch.equal(out[0], left)


def test_ada_s_are_the_image_itself_where_no_gate_is_open():
    x = torch.randn(5, 3, 7, 9)
    a = made("ada", p=0.0)
    torch.testing.assert_close(a(x, drawn(a, 5))[0], x, rtol=1e-5, atol=1e-5)
    half = made("ada:blit", p=0.3)
    out = half(x.repeat(40, 1, 1, 1), drawn(half, 200))[0]
    kept = (out == x.repeat(40, 1, 1, 1)).flatten(1).all(1).double().mean()
    # Four gates; a flip, a turn and a shift by 0 are among what an open gate may do.
    assert 0.7**4 < kept < 0.8


def test_blits_are_flips_turns_and_shifts_of_whole_pixels():
    x = torch.arange(36.0).view(1, 1, 6, 6).repeat(200, 1, 1, 1)
    a = made("ada:blit")
    normals = drawn(a, 200)
    normals[:, 2:4] = 0.0  # no shift
    out = a(x, normals)[0]
    assert all(torch.equal(o.flatten().sort().values, torch.arange(36.0)) for o in out)
    known = [torch.rot90(y, k, (0, 1)) for y in (x[0, 0], x[0, 0].flip(1)) for k in range(4)]
    found = {next(i for i, k in enumerate(known) if torch.equal(o[0], k)) for o in out}
    assert found == set(range(8))


def test_a_turn_by_a_quarter_is_that_of_the_pixels():
    x = torch.randn(1, 2, 6, 6)
    a = made("ada:geom")
    quarter = torch.special.ndtri(torch.tensor(0.75))  # (2 * 0.75 - 1) * pi
    normals = torch.zeros(1, a.columns)
    normals[:, 2] = quarter
    out = a(x, normals)[0]
    turned = [torch.rot90(x, k, (2, 3)) for k in (1, 3)]
    assert min((out - t).abs().max() for t in turned) < 1e-5


def test_colours_turn_about_grey():
    grey = torch.rand(50, 1, 4, 4).repeat(1, 3, 1, 1)
    a = made("ada:color")
    normals = drawn(a, 50)
    normals[:, 2] = -1.0  # no flip
    out = a(grey, normals)[0]
    torch.testing.assert_close(out[:, 0], out[:, 2], rtol=1e-4, atol=1e-5)
    normals[:, [0, 1, 4]] = 0.0  # hue alone keeps the length of a colour
    x = torch.randn(50, 3, 4, 4)
    turned = a(x, normals)[0]
    torch.testing.assert_close(turned.norm(dim=1), x.norm(dim=1), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(turned, x, atol=0.1)


def test_images_that_belong_to_an_image_move_with_it_and_keep_their_colours():
    a = made("diffaugment")
    x = torch.rand(9, 3, 8, 8) + 1
    image, other = a(x, drawn(a, 9), x[:, :1])
    b = made("diffaugment:translation,cutout")
    moved = b(x, drawn(a, 9)[:, 3:])[0]
    assert torch.equal(other, moved[:, :1]) and not torch.equal(image, moved)
    assert torch.equal(image != 0, moved != 0)


class Looking(nn.Module):
    """A discriminator that keeps what it is given."""

    def __init__(self, network):
        super().__init__()
        self.network, self.seen = network, []

    def forward(self, x):
        self.seen.append(x)
        return self.network(x)


def test_d_sees_real_and_fake_images_transformed_in_both_updates_and_penalties():
    def engine(**options):
        d = Looking(discriminator())
        found = EagerEngine(problem(d=d, loss="hinge", penalties=["r1", "wgan-gp"], **options))
        d.seen.clear()
        return found, d.seen

    plain, seen = engine()
    other, transformed = engine(augment="diffaugment")
    plain.run(1), other.run(1)
    assert len(seen) == len(transformed) == 4  # real, fake, between; fake
    for i, (a, b) in enumerate(zip(seen[:3], transformed[:3], strict=True)):
        p = other.problem
        stream = (1 << 29) + (0, 1, 5)[i]
        normals = random.normal(p.seed, stream, 0, (len(a), p.augmentation.columns))
        torch.testing.assert_close(p.augmentation(a, normals)[0], b)
    assert not torch.equal(seen[3], transformed[3])
    assert transformed[3].requires_grad


class Method:
    def d_loss(self, step):
        self.given = step.D(step.real), step.D.network(step.real)
        self.asked = step.augment(step.real), step.real
        return self.given[0].mean() - step.D(step.fake).mean()

    def g_loss(self, step):
        return step.D(step.fake).mean()


def test_a_methods_calls_of_d_are_transformed_and_those_of_its_parts_are_not():
    d = Looking(discriminator())
    p = problem(d=d, method=Method(), augment="diffaugment:cutout")
    EagerEngine(p).run(1)
    whole, part = p.method.given
    assert not torch.equal(whole, part)
    changed, real = p.method.asked
    assert (changed == 0).sum() > (real == 0).sum() + 30
    two = {"a": discriminator(), "b": discriminator()}
    q = problem(d=nn.ModuleDict({k: Looking(v) for k, v in two.items()}), method=Pair(),
                augment="diffaugment:cutout")  # fmt: skip
    EagerEngine(q).run(1)
    for one in q.discriminator.values():
        assert (one.seen[0] == 0).sum() > 30


class Pair:
    def d_loss(self, step):
        return sum(step.D[name](step.real).mean() for name in "ab")

    def g_loss(self, step):
        return step.D.a(step.fake).mean()


def test_ada_follows_the_sign_of_the_real_scores():
    a = made("ada:blit", p=0.5)
    assert a.sign(torch.tensor([1.0, -2.0, 3.0, 0.5]), "it") == 0.5
    assert made("ada", middle=0.5).sign(torch.tensor([0.9, 0.4]), "it") == 0.0
    move = 4 * 8 / 500_000
    for mean, expected in ((1.0, 0.5 + move), (0.61, 0.5 + 2 * move), (0.59, 0.5 + move)):
        for update in range(4):
            assert a.state[2] == update
            a.look(torch.tensor(mean))
        torch.testing.assert_close(a.state, torch.tensor([expected, 0.0, 0.0]))
    low = made("ada:0.3", p=0.0)
    for _ in range(8):
        low.look(torch.tensor(-1.0))
    assert low.state[0] == 0 and low.given.target == 0.3


class Sure(nn.Module):
    """A discriminator that takes everything for real."""

    def __init__(self):
        super().__init__()
        self.network = discriminator()

    def forward(self, x):
        return 5 + 0.01 * self.network(x)


@pytest.mark.parametrize("options", [{}, {"method": Method()}, {"accumulate": 2}])
def test_ada_s_probability_rises_is_logged_and_is_the_same_on_graph(options):
    d = Looking(Sure()) if "method" in options else Sure()
    p = problem(d=d, augment="ada", batch_size=8, source=images(64), **options)
    engine = EagerEngine(p)
    engine.run(5)
    torch.testing.assert_close(p.augmentation.state, torch.tensor([32 / 500_000, 1.0, 1.0]))
    assert engine.logged["augment_p"] == p.augmentation.state[0]
    if not options:
        q = problem(d=Sure(), augment="ada", batch_size=8, source=images(64))
        GraphEngine(q, Again()).run(5)
        assert torch.equal(q.augmentation.state, p.augmentation.state)
        torch.testing.assert_close(
            weights(q.discriminator), weights(p.discriminator), rtol=1e-4, atol=1e-5
        )
        assert "augment=ada:blit,geom,color has no" in engines.load("fused").unsupported(p)


def test_ada_s_probability_is_continued_to_the_bit(tmp_path):
    def trainer(out):
        torch.manual_seed(3)
        options = {**QUICK, "augment": "ada", "loss": "hinge"}
        t = Trainer(plain_g(), plain_d(), labelled(), out=tmp_path / out, **options)
        t.problem.augmentation.state[0] = 0.5
        return t

    whole = trainer("whole")
    whole.fit(steps=11)
    trainer("half").fit(steps=5)
    half = Trainer.resume(tmp_path / "half", plain_g(), plain_d(), labelled())
    assert half.problem.augmentation.state[2] == 1
    half.fit(steps=11)
    assert torch.equal(half.problem.augmentation.state, whole.problem.augmentation.state)
    assert_same_bits(every_bit(half), every_bit(whole))
    assert whole.history[-1]["augment_p"] == pytest.approx(whole.problem.augmentation.state[0])


def test_what_is_no_image_and_a_method_without_a_real_score_are_told():
    with pytest.raises(ConfigError, match=r"augment is 'diffaugment:.*for images.*\[12\]"):
        problem(nn.Linear(5, 12), nn.Linear(12, 1), data.open(torch.randn(40, 12)),
                augment="diffaugment")  # fmt: skip

    class Blind:
        def d_loss(self, step):
            return step.D(step.fake).mean()

        def g_loss(self, step):
            return step.D(step.fake).mean()

    with pytest.raises(ValueError, match="method 'Blind' has not called step.D on step.real"):
        EagerEngine(problem(method=Blind(), augment="ada")).run(1)
    with pytest.raises(ConfigError, match="says nothing; use 'diffaugment'"):
        problem(loss="relativistic-average", augment="ada")
    said = [n for n in losses.LOSSES if n.startswith("relativistic")]
    assert said == [*augment._RELATIVISTIC]


def test_ada_s_target_is_written_down_to_the_last_digit():
    for words in ("ada:geom:0.1234567891", "ada:geom:0.5"):
        assert str(augment.read(words)) == words
