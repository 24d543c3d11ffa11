"""What a method may hold or do to networks: earlier fakes, spectral norm."""

import pytest
import torch
from methods import bce, labelled, plain_d, plain_g
from pairs import discriminator, problem
from small_runs import QUICK, assert_same_bits, every_bit
from torch import nn

import fastgan
from fastgan import History, Trainer, random
from fastgan.engines.eager import EagerEngine


class WithHistory:
    def __init__(self, size=20):
        self.history = History(size)
        self.seen = []

    def d_loss(self, step):
        shown = self.history(step, step.fake)
        return bce(step.D(step.real), 1.0) + bce(step.D(shown), 0.0)

    def g_loss(self, step):
        return bce(step.D(step.fake), 1.0)


class Watched(WithHistory):
    def d_loss(self, step):
        self.seen.append((step.fake, self.history(step, step.fake)))
        return bce(step.D(step.real), 1.0) + bce(step.D(self.seen[-1][1]), 0.0)


def test_a_history_is_filled_and_then_gives_back_earlier_ones_half_the_time():
    p = problem(method=Watched(), batch_size=20)
    engine = EagerEngine(p)
    engine.run(1)
    (fake, shown), history = p.method.seen[0], p.method.history
    assert torch.equal(fake, shown) and len(history) == 20
    held = [*fake.clone()]
    earlier = 0
    for t in range(1, 20):
        engine.run(1)
        fake, shown = p.method.seen[t]
        numbers = torch.special.ndtr(random.normal(p.seed, (1 << 28) + 3, t, (len(fake), 2)))
        for new, out, (chance, place) in zip(fake, shown, numbers.tolist(), strict=True):
            if chance < 0.5:
                earlier += 1
                at = min(int(place * 20), 19)
                assert torch.equal(out, held[at])
                held[at] = new.clone()
            else:
                assert torch.equal(out, new)
    assert 0.4 < earlier / sum(len(fake) for fake, _ in p.method.seen[1:]) < 0.6
    assert not shown.requires_grad
    assert torch.equal(history.state_dict()["samples"], torch.stack(held))


def test_a_history_is_that_of_the_whole_batch_in_parts_too():
    whole, parts = (problem(method=WithHistory(7), batch_size=8, accumulate=n) for n in (1, 3))
    for p in (whole, parts):
        EagerEngine(p).run(4)
    kept = [p.method.history.state_dict()["samples"] for p in (whole, parts)]
    torch.testing.assert_close(*kept, rtol=1e-4, atol=1e-5)


def test_a_history_is_continued_to_the_bit(tmp_path):
    def trainer(out):
        torch.manual_seed(3)
        options = {**QUICK, "method": WithHistory()}
        return Trainer(plain_g(), plain_d(), labelled(), out=tmp_path / out, **options)

    whole = trainer("whole")
    whole.fit(steps=12)
    trainer("half").fit(steps=5)
    half = Trainer.resume(tmp_path / "half", plain_g(), plain_d(), labelled(), method=WithHistory())
    half.fit(steps=12)
    assert_same_bits(every_bit(half), every_bit(whole))
    a, b = (t.problem.method.history.state_dict()["samples"] for t in (half, whole))
    assert torch.equal(a, b)
    with pytest.raises(ValueError, match="field 'loss' cannot be read: History.5. has no room"):
        other = WithHistory(5)
        Trainer.resume(tmp_path / "half", plain_g(), plain_d(), labelled(), method=other)


def test_a_history_without_room_is_refused():
    with pytest.raises(ValueError, match="History: size is 0; expected an integer of at least 1"):
        History(0)


def test_spectral_norm_divides_every_weight_by_its_largest_factor():
    torch.manual_seed(1)
    d = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ConvTranspose2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 4),
        nn.BatchNorm1d(4), nn.Linear(4, 1),
    )  # fmt: skip
    assert fastgan.spectral_norm(d) is d
    names = set(d.state_dict())
    assert fastgan.spectral_norm(d) and set(d.state_dict()) == names, "once"
    for _ in range(30):
        d(torch.randn(5, 1, 6, 6))
    d.eval()
    for layer, axis in ((d[0], 0), (d[1], 1), (d[3], 0), (d[5], 0)):
        matrix = layer.weight.transpose(0, axis).flatten(1)
        assert torch.linalg.matrix_norm(matrix.detach(), 2) == pytest.approx(1, rel=1e-2)
    with pytest.raises(ValueError, match="0 is a LinearLeakyReLU.*call fastgan.unfuse"):
        fastgan.spectral_norm(fastgan.fuse(nn.Sequential(nn.Linear(3, 3), nn.LeakyReLU(0.2))))


def test_a_discriminator_with_spectral_norm_trains_and_is_continued_to_the_bit(tmp_path):
    def pair():
        torch.manual_seed(3)
        return plain_g(), fastgan.spectral_norm(discriminator())

    options = {**QUICK, "loss": "hinge"}
    whole = Trainer(*pair(), labelled(), out=tmp_path / "whole", **options)
    whole.fit(steps=9)
    Trainer(*pair(), labelled(), out=tmp_path / "half", **options).fit(steps=4)
    half = Trainer.resume(tmp_path / "half", *pair(), labelled())
    half.fit(steps=9)
    assert_same_bits(every_bit(half), every_bit(whole))
