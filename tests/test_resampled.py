"""Changes of size beside a convolution: the same function, without the large image."""

import pytest
import torch
import torch.nn.functional as F
from operator_cases import needs_library
from test_convolutions import always, images
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from fastgan import engines, ops, torch_graphs, torch_private
from fastgan.engines import recorded, resampled
from fastgan.problem import make_problem

pytestmark = needs_library
assert always  # a fixture

aten, own = torch.ops.aten, torch.ops.fastgan


def doubled(x):
    return F.interpolate(x, scale_factor=2)


def halved(x):
    return F.avg_pool2d(x, 2)


KINDS = {
    "up, 3": lambda conv, x, w, b, v, c: conv(doubled(x), w, b, 1, 1),
    "up, 3 without a bias": lambda conv, x, w, b, v, c: conv(doubled(x), w, None, 1, 1),
    "3, pool": lambda conv, x, w, b, v, c: halved(conv(x, w, b, 1, 1)),
    "up, 1": lambda conv, x, w, b, v, c: conv(doubled(x), v, c),
    "1, pool": lambda conv, x, w, b, v, c: halved(conv(x, v, c)),
    "up, both": lambda conv, x, w, b, v, c: (
        conv(torch.relu(conv(doubled(x), w, b, 1, 1)), w, b, 1, 1) + conv(doubled(x), v, c)
    ),
    "both, pool": lambda conv, x, w, b, v, c: (
        halved(conv(torch.relu(conv(x, w, b, 1, 1)), w, b, 1, 1)) + halved(conv(x, v, c))
    ),
    "up, 3, pool": lambda conv, x, w, b, v, c: halved(conv(doubled(x), w, b, 1, 1)),
    "pool, 3, up": lambda conv, x, w, b, v, c: doubled(conv(halved(x), w, b, 1, 1)),
}


def program(kind, conv, penalised=True):
    """What an update of one layer would ask for."""

    def work(x, *weights):
        y = KINDS[kind](conv, x, *weights)
        used = [w for w in weights if w.requires_grad]
        first = torch.autograd.grad(
            y.square().sum(), [x, *used], create_graph=True, allow_unused=True
        )
        again = []
        if penalised:
            again = torch.autograd.grad(first[0].square().sum(), used, allow_unused=True)
        return [t.detach() for t in (y, *first, *again) if t is not None]

    return work


def drawn(dtype=torch.float32, inside=8, outside=8):
    generator = torch.Generator().manual_seed(0)
    sizes = [
        (3, inside, 6, 8),
        (outside, inside, 3, 3),
        (outside,),
        (outside, inside, 1, 1),
        (outside,),
    ]
    tensors = [torch.randn(s, generator=generator) / 2 for s in sizes]
    tensors[0] = tensors[0].to(memory_format=torch.channels_last)
    return [t.to(dtype).requires_grad_() for t in tensors]


def simplified(kind, penalised=True):
    traced = torch_graphs.traced(program(kind, ops.conv2d, penalised), drawn())
    return recorded.simplified(traced, drawn())


def called(graph):
    return [n.target for n in graph.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("of_1x1", [None, "weight"])
def test_it_is_the_same_function(monkeypatch, kind, of_1x1):
    ours = lambda way, kernel, *sizes: kernel != 1 or way == of_1x1  # noqa: E731
    monkeypatch.setattr(ops.conv, "is_faster", ours)
    expected = program(kind, F.conv2d)(*drawn(torch.float64))
    plain = program(kind, ops.conv2d)(*drawn())
    graph = simplified(kind)
    with torch.no_grad():
        found = graph(*drawn())
    for a, b, c in zip(found, plain, expected, strict=True):
        assert a.stride() == b.stride()
        far, usual = ((t.double() - c).abs().max() / c.abs().max() for t in (a, b))
        assert far < 4 * usual + 1e-6


@pytest.mark.parametrize("kind", ["up, 3", "3, pool"])
def test_no_large_image_is_made(always, kind):
    found = called(simplified(kind, False))
    assert not {aten.upsample_nearest2d.default, *POOLS} & set(found)
    assert resampled.spread in found and resampled.folded in found


POOLS = aten.avg_pool2d.default, aten.avg_pool2d_backward.default


@pytest.mark.parametrize("kind", ["up, 1", "1, pool"])
def test_a_1x1_is_of_the_small_image(monkeypatch, kind):
    monkeypatch.setattr(ops.conv, "is_faster", lambda *sizes: False)
    sizes = []

    class Convolutions(torch_private.OperationMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in (aten.convolution.default, aten.convolution_backward.default):
                sizes.append(args[0].shape[2:])
            return func(*args, **(kwargs or {}))

    graph = simplified(kind, False)
    with torch.no_grad(), Convolutions():
        graph(*drawn())
    small = (6, 8) if kind == "up, 1" else (3, 4)
    assert sizes and all(max(size) <= max(small) for size in sizes)


def test_where_another_needs_the_image_it_is_made(always):
    def work(x, w, b, v, c):
        h = ops.conv2d(x, w, b, 1, 1)
        return [halved(h), torch.tanh(h)]

    tensors = [t.detach() for t in drawn()]
    expected = work(*tensors)
    graph = recorded.simplified(torch_graphs.traced(work, tensors), tensors)
    assert own.conv2d_leaky_relu.default in called(graph)
    assert aten.avg_pool2d.default in called(graph)
    assert all(map(torch.equal, graph(*tensors), expected))


def test_what_is_written_into_meanwhile_is_read_before(always):
    def work(x, w, b, v, c):
        h = torch.tanh(x)
        large = doubled(h)
        h.mul_(2)
        return [ops.conv2d(large, w, b, 1, 1), h]

    tensors = [t.detach() for t in drawn()]
    expected = work(*tensors)
    graph = recorded.simplified(torch_graphs.traced(work, tensors), tensors)
    assert aten.upsample_nearest2d.default in called(graph)
    assert all(map(torch.equal, graph(*tensors), expected))


def test_other_sizes_are_left_alone(always):
    def work(x, w, b, v, c):
        three = F.interpolate(x, scale_factor=3)
        smooth = F.interpolate(x, scale_factor=2, mode="bilinear")
        pooled = [F.avg_pool2d(ops.conv2d(x, w, b, 1, 1), *s) for s in ((3, 1), (2, 1), (2, 2, 1))]
        odd = F.avg_pool2d(ops.conv2d(x[:, :, :5], w, b, 1, 1), 2)
        return [ops.conv2d(three, w, b, 1, 1), ops.conv2d(smooth, w, b, 1, 1), *pooled, odd]

    tensors = [t.detach() for t in drawn()]
    expected = work(*tensors)
    graph = recorded.simplified(torch_graphs.traced(work, tensors), tensors)
    assert resampled.spread not in called(graph)
    assert all(map(torch.equal, graph(*tensors), expected))


class Up(nn.Module):
    """A generator with a block that doubles."""

    def __init__(self):
        super().__init__()
        self.first = nn.ConvTranspose2d(5, 8, 4, bias=False)
        self.norm, self.conv = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, 1, 1)
        self.shortcut, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 3, 1, 1)

    def forward(self, z):
        x = self.first(z)
        h = self.conv(doubled(torch.relu(self.norm(x)))) + self.shortcut(doubled(x))
        return torch.tanh(self.last(torch.relu(h)))


class Down(nn.Module):
    """A discriminator with a block that halves."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = (spectral_norm(nn.Conv2d(n, 8, 3, 1, 1)) for n in (3, 8))
        self.shortcut, self.last = spectral_norm(nn.Conv2d(3, 8, 1)), nn.Linear(8, 1)

    def forward(self, x):
        h = halved(self.conv2(torch.relu(self.conv1(x)))) + halved(self.shortcut(x))
        return self.last(torch.relu(h).sum((2, 3)))


@pytest.mark.parametrize("options", [{}, {"penalties": "r1"}])
def test_steps_are_eagers_but_for_rounding(always, options):
    options = {"batch_size": 8, "latent_dim": (5, 1, 1), "device": "cpu", "lr": 1e-3, **options}
    runs = []
    for name in ("eager", "compile", "compile"):
        torch.manual_seed(0)
        p = make_problem(Up(), Down(), images(), **options)
        engine, said = engines.choose(p, name)
        assert name == "eager" or "losses and gradients recorded" in said
        runs.append([engine.run(5), *p.generator.parameters(), *p.discriminator.parameters()])
    for a, b, c in zip(*runs, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4)
        assert torch.equal(b, c)
