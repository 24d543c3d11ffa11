"""nn.Dropout with the masks of the step."""

import copy

import pytest
import torch
from pairs import Twice, discriminator, problem
from torch import nn

from fastgan import random
from fastgan.engines.eager import EagerEngine
from fastgan.nn import fuse
from fastgan.random import Stream

SEEN = []


class Noting(Twice):
    def note(self, masks):
        SEEN.append(masks)


def test_masks_are_those_of_the_contract_and_two_calls_differ():
    d = Noting()
    p = problem(d=d, d_steps=2)
    d.train()
    engine = EagerEngine(p)
    SEEN.clear()  # the looks that the engine takes at D
    engine.step = 3
    engine.run(1)
    expected = [(0, 6), (1, 6), (0, 7), (1, 7), (2, 3)]
    assert len(SEEN) == len(expected)
    for seen, (use, step) in zip(SEEN, expected, strict=True):
        keep = random.keep_mask(p.seed, Stream.DROPOUT + use, step, (seen.numel(),), 0.5)
        assert torch.equal(seen.flatten(), keep * 2.0)
        assert not torch.equal(seen[0], seen[1])


def test_fused_layers_drop_what_the_plain_ones_do():
    layers = nn.Linear(36, 16), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(16, 1)
    plain = nn.Sequential(nn.Flatten(), *layers)
    watched = copy.deepcopy(plain)
    fused = fuse(copy.deepcopy(plain))
    fuse(watched)[3].register_forward_hook(lambda *_: seen.append(1))
    seen, found = [], []
    for d in (plain, fused, watched):
        torch.manual_seed(1)
        found.append(EagerEngine(problem(d=d)).run(5))
        assert "forward" not in vars(d) and all("forward" not in vars(m) for m in d)
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])
    assert seen, "a hook's layer is called as a layer"


def test_dropout_off_and_forward_put_back():
    off, in_place, shared = nn.Dropout(0.9).eval(), nn.Dropout(0.3, inplace=True), nn.Dropout(0.0)
    p = problem(d=discriminator(middle=(off, nn.Sequential(shared, shared), in_place)))
    own = lambda x: x  # noqa: E731
    shared.forward = own
    q = problem(d=discriminator(middle=(nn.Dropout(0.3),)))
    q.discriminator.body[1].load_state_dict(p.discriminator.body[1].state_dict())
    q.discriminator.body[-1].load_state_dict(p.discriminator.body[-1].state_dict())
    q.generator.load_state_dict(p.generator.state_dict())
    a, b = EagerEngine(p), EagerEngine(q)
    assert torch.isfinite(a.run(2)).all() and torch.isfinite(b.run(2)).all()
    assert "forward" not in vars(off) and "forward" not in vars(in_place)
    assert shared.forward is own

    p.generator.forward = lambda z: 1 / 0
    with pytest.raises(ZeroDivisionError):
        a.run(1)
    assert "forward" not in vars(off) and "forward" not in vars(in_place)
    assert all(w.requires_grad for w in p.discriminator.parameters())
