"""CTGAN's losses with their gradients written out, against autograd's."""

import pytest
import torch

from fastgan import ctgan_gradients, random
from fastgan.games import TableMethod, surprise
from fastgan.models import CTGANDiscriminator, CTGANGenerator
from fastgan.tabular import Synthesizer

pandas = pytest.importorskip("pandas")
HEADS = [("tanh", 1)] * 2 + [("softmax", n) for n in (2, 2, 3, 2, 4, 4, 5)]
ROW, ASKED, PACK, PACKS = 24, 15, 3, 4
WIDTHS = (2, 4, 4, 5)


def normal(*shape, stream=0):
    return random.normal(4, stream, 0, shape).double()


def condition(n):
    category = torch.arange(n) * 7 % ASKED
    return category, torch.nn.functional.one_hot(category, ASKED).double()


def pair(asked=ASKED):
    torch.manual_seed(3)
    g = CTGANGenerator(HEADS, 6, 9, asked).double()
    d = CTGANDiscriminator(ROW, 8, asked, PACK).double()
    for w in d.parameters():  # far from 0, where the rectifiers' corner is
        w.data.mul_(3.0)
    return g, d


class Masked(torch.nn.Module):
    """A dropout with a mask of its own for each call."""

    def __init__(self, masks):
        super().__init__()
        self.masks = list(masks)

    def forward(self, x):
        return x * self.masks.pop(0)


def drop(calls, stream):
    return [
        tuple((normal(PACKS, 8, stream=stream + 2 * i + k) > 0).double() * 2 for k in range(2))
        for i in range(calls)
    ]


def with_masks(d, masks):
    d.layers[2], d.layers[5] = (Masked(part) for part in zip(*masks, strict=True))
    return d


def gradients_of(loss, network):
    return torch.autograd.grad(loss, [*network.parameters()])


@pytest.mark.parametrize("asked", [ASKED, 0])
def test_the_critics_loss_and_all_its_gradients(asked):
    _, d = pair(asked)
    n = PACK * PACKS
    real, fake, places = normal(n, ROW, stream=1), normal(n, ROW, stream=2), torch.rand(PACKS, 1)
    places = places.double()
    cond, masks = (condition(n)[1] if asked else None), drop(3, 20)
    found = ctgan_gradients.of_d(d, real, fake, cond, tuple(masks), places, 10.0)
    with_masks(d, masks)
    on_real, on_fake = d(real, cond), d(fake, cond)
    between = torch.lerp(fake.view(PACKS, -1), real.view(PACKS, -1), places).requires_grad_()
    scores = d(between.view(n, -1), cond)
    (slope,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
    penalty = 10 * (slope.norm(dim=1) - 1).square().mean()
    loss = on_fake.mean() - on_real.mean()
    torch.testing.assert_close(found.loss, loss)
    torch.testing.assert_close(found.penalty, penalty)
    torch.testing.assert_close(found.on_real, on_real)
    torch.testing.assert_close(found.on_fake, on_fake)
    for mine, theirs in zip(found.gradients, gradients_of(loss + penalty, d), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


def test_a_slope_of_zero_has_a_penalty_and_no_gradient():
    _, d = pair()
    for w in d.parameters():
        w.data.zero_()
    n = PACK * PACKS
    found = ctgan_gradients.of_d(
        d, normal(n, ROW), normal(n, ROW, stream=1), condition(n)[1], tuple(drop(3, 20)),
        torch.rand(PACKS, 1).double(), 10.0,
    )  # fmt: skip
    assert float(found.penalty) == 10 and all(g.isfinite().all() for g in found.gradients)


@pytest.mark.parametrize("asked", [ASKED, 0])
def test_the_generators_loss_and_all_its_gradients(asked, monkeypatch):
    g, d = pair(asked)
    n = PACK * PACKS
    z, normals = normal(n, 6, stream=1), normal(n, g.choices, stream=3)
    category, cond = condition(n) if asked else (None, None)
    masks = drop(1, 40)
    before = {k: v.clone() for k, v in g.state_dict().items()}
    made = ctgan_gradients.made(g, z, category, normals)
    loss, at_rows = ctgan_gradients.against(d, made.rows, cond, masks[0])
    groups = None
    if asked:
        wide = torch.tensor(WIDTHS)
        groups = ((wide.cumsum(0) - wide + ROW - ASKED).repeat_interleave(wide),)
        groups += (wide.repeat_interleave(wide),)
    found, extra = ctgan_gradients.of_g(g, made, category, at_rows, groups)
    if asked:
        loss = loss + extra
    moved = {k: v.clone() for k, v in g.state_dict().items()}
    g.load_state_dict(before)
    with_masks(d, masks)
    logits = g.logits(z, cond)
    # The noise of choices is in float32 there.
    noise = torch.special.ndtr(normals).clamp(6e-8, 1 - 6e-8)
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x)
    rows = g.activated(logits, noise)
    expected = -d(rows, cond).mean()
    if asked:
        expected = expected + surprise(g.blocks, logits, cond).mean()
    torch.testing.assert_close(made.logits, logits)
    torch.testing.assert_close(made.rows, rows)
    torch.testing.assert_close(loss, expected)
    for mine, theirs in zip(found, gradients_of(expected, g), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
    for name, value in g.state_dict().items():
        torch.testing.assert_close(value, moved[name])


# In a step


def frame(n=120):
    z = random.normal(1, 300, 0, n).double()
    where = torch.arange(n)
    return pandas.DataFrame(
        {
            "x": (torch.where(where % 2 == 0, z, 10 + z)).numpy().round(3),
            "kind": ["abc"[i % 3] for i in range(n)],
            "y": (where % 2).numpy(),
        }
    )


def begun(discrete=("kind", "y"), **settings):
    small = {"batch_size": 40, "pac": 4, "embedding_dim": 6, "width": 8, "engine": "eager"}
    return Synthesizer(1, **{**small, **settings})._begun(frame(), list(discrete))


def trained(autograd, monkeypatch, discrete, steps=4):
    with monkeypatch.context() as patch:
        calls = []
        if autograd:
            patch.setattr(ctgan_gradients, "are_plain", lambda *_: False)
        for name in ("of_d", "of_g"):
            own = getattr(ctgan_gradients, name)
            patch.setattr(ctgan_gradients, name, lambda *a, own=own: calls.append(1) or own(*a))
        t = begun(discrete)
        told = t.engine.run(steps)
        assert len(calls) == (0 if autograd else 2 * steps)
    return told, [
        w.detach() for m in (t.generator, t.discriminator) for w in m.state_dict().values()
    ]


@pytest.mark.parametrize("discrete", [("kind", "y"), ("kind",)])
def test_a_step_is_the_same_either_way(discrete, monkeypatch):
    told, weights = trained(False, monkeypatch, discrete)
    expected_told, expected = trained(True, monkeypatch, discrete)
    torch.testing.assert_close(told, expected_told, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(weights, expected, strict=True):
        # Adam's first steps magnify what rounding leaves of a bias before a BatchNorm.
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("what", ["hook", "eval", "forward", "double", "layer", "global"])
def test_networks_that_are_not_as_they_were_made_are_autograds(what):
    g, d = (CTGANGenerator(HEADS, 6, 9, ASKED), CTGANDiscriminator(ROW, 8, ASKED, PACK))
    assert ctgan_gradients.are_plain(g, d)
    seen, handle = [], None
    if what == "hook":
        d.layers[1].register_forward_hook(lambda *a: None)
    elif what == "eval":
        g.layers[0][1].eval()
    elif what == "forward":
        g.forward = lambda z, c=None: g.logits(z, c)
    elif what == "double":
        d.double()
    elif what == "layer":
        d.layers[1] = torch.nn.ELU()
    else:
        handle = torch.nn.modules.module.register_module_forward_hook(lambda *a: seen.append(a))
    try:
        assert not ctgan_gradients.are_plain(g, d)
    finally:
        if handle is not None:
            handle.remove()


def test_a_frozen_weight_stays():
    t = begun()
    t.generator.last.weight.requires_grad_(False)
    before = t.generator.last.weight.clone()
    t.engine.run(2)
    assert torch.equal(t.generator.last.weight, before) and t.generator.last.weight.grad is None


def test_hooks_of_weights_see_their_gradients(monkeypatch):
    t, seen = begun(weight_decay=0.0), []
    t.generator.last.weight.register_hook(lambda grad: seen.append(grad.clone()) or 0 * grad)
    before = t.generator.last.weight.detach().clone()
    t.engine.run(1)
    assert len(seen) == 1 and seen[0].abs().max() > 0
    assert torch.allclose(before, t.generator.last.weight, atol=1e-6)


def test_other_engines_settings_and_precisions_take_autograd(monkeypatch):
    def refused(*_):
        raise AssertionError("not here")

    monkeypatch.setattr(ctgan_gradients, "of_d", refused)
    for settings in ({"precision": "bf16"}, {"accumulate": 2}):
        begun(**settings).engine.run(1)
    assert TableMethod().name == "ctgan"
