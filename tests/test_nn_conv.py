"""Convolutions with their rectifiers, and their exchange in a tree of modules."""

import copy

import pytest
import torch
import torch.nn.functional as F
from operator_cases import needs_library
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from fastgan import ops
from fastgan.nn import Conv2dLeakyReLU, ConvTranspose2dLeakyReLU, fuse, unfuse


class Net(nn.Module):
    """Served and other convolutions, alone and before rectifiers, down, flat and up again."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(8, 12, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(12, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
        )
        self.skip = nn.Conv2d(12, 12, 1)
        self.odd = nn.Conv2d(12, 12, 5, padding=2)
        self.up = nn.Sequential(nn.ConvTranspose2d(12, 9, 4, 2, 1), nn.ReLU(True), nn.Tanh())
        self.last = spectral_norm(nn.Conv2d(9, 1, 3, padding=1))

    def forward(self, x):
        x = self.down(x)
        return self.last(self.up(self.odd(x) + self.skip(x)))


def describe(module):
    return [(name, type(m), m.extra_repr(), m.training) for name, m in module.named_modules()]


def values(net, x):
    net.zero_grad()
    y = net(x)
    y.square().sum().backward()
    return [y, *(p.grad for p in net.parameters())]


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(ops.conv, "is_faster", lambda *sizes: True)


@pytest.mark.parametrize("last", [False, True])
def test_fuse_keeps_keys_parameters_and_values(always, last):
    torch.manual_seed(0)
    net = Net()
    x = torch.randn(3, 8, 8, 6)
    if last:
        net, x = (t.to(memory_format=torch.channels_last) for t in (net, x))
    plain, parameters, keys = copy.deepcopy(net), list(net.parameters()), list(net.state_dict())
    strides = [p.stride() for p in parameters]
    assert fuse(net) is net
    kinds = [type(net.down[0]), type(net.down[2]), type(net.skip), type(net.up[0])]
    assert kinds == [Conv2dLeakyReLU] * 3 + [ConvTranspose2dLeakyReLU]
    slopes = [m.negative_slope for m in (net.down[0], net.down[2], net.skip, net.up[0])]
    assert slopes == [0.2, 1.0, 1.0, 0.0]
    assert all(isinstance(m, nn.Identity) for m in (net.down[1], net.up[1]))
    assert type(net.odd) is nn.Conv2d and type(net.down[4]) is nn.ReLU
    assert not isinstance(net.last, Conv2dLeakyReLU)
    assert list(net.state_dict()) == keys and [p.stride() for p in parameters] == strides
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    net.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(net.state_dict(), strict=True)
    for a, b in zip(values(net, x), values(plain, x), strict=True):
        scale = b.abs().max()
        assert (a - b).abs().max() <= 1e-4 * scale + 1e-6  # BatchNorm makes bias gradients of zeros


def test_unfuse_gives_the_original_back():
    net = Net()
    net.up.eval()
    net.down[0].weight.requires_grad_(False)
    before, state, parameters = describe(net), torch.get_rng_state(), list(net.parameters())
    fuse(net)
    assert describe(net) != before and not net.up[0].training
    assert describe(fuse(net)) == describe(net)  # once more changes nothing
    twin = unfuse(copy.deepcopy(net))
    assert unfuse(net) is net
    assert describe(net) == describe(twin) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert net.down[1].inplace and net.up[1].inplace
    assert not any("negative_slope" in vars(m) for m in (net.down[0], net.skip, net.up[0]))


def test_unfuse_leaves_hand_written_layers():
    net = nn.Sequential(Conv2dLeakyReLU(3, 3, 3), nn.Identity())
    assert type(unfuse(net)[0]) is Conv2dLeakyReLU


class OwnConv(nn.Conv2d):
    pass


def hooked():
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.LeakyReLU())
    net[0].register_forward_hook(lambda module, inputs, output: output + 1)
    return net


def shared():
    layer = nn.Conv2d(3, 3, 3, padding=1)
    return nn.Sequential(layer, nn.ReLU(), layer)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(OwnConv(3, 3, 3, padding=1), nn.ReLU()),
        lambda: nn.Sequential(spectral_norm(nn.Conv2d(3, 3, 3, padding=1)), nn.ReLU()),
        lambda: nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()),
        lambda: nn.Sequential(nn.Conv2d(3, 3, 3, padding="same"), nn.ReLU()),
        lambda: nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), nn.ReLU()),
        lambda: nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.ReLU()),
        lambda: nn.Sequential(nn.Conv2d(3, 3, 4, 2, 1, dilation=2), nn.ReLU()),
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 3, 4, 2, 1, output_padding=1)),
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 3, 3, 2, 1)),
        lambda: nn.Sequential(nn.Conv1d(3, 3, 3, padding=1), nn.ReLU()),
        hooked,
        shared,
    ],
)
def test_fuse_leaves_alone_what_it_would_break(make):
    net = make()
    before = describe(net)
    assert describe(fuse(net)) == before


@pytest.mark.parametrize("bias", [True, False])
def test_modules_are_convolution_then_leaky_relu(bias):
    for ours, torchs in (
        (Conv2dLeakyReLU, nn.Conv2d),
        (ConvTranspose2dLeakyReLU, nn.ConvTranspose2d),
    ):
        torch.manual_seed(0)
        layer = ours(6, 5, 4, 2, 1, bias=bias, negative_slope=0.1)
        torch.manual_seed(0)
        plain = torchs(6, 5, 4, 2, 1, bias=bias)
        assert list(layer.state_dict()) == list(plain.state_dict())
        assert torch.equal(layer.weight, plain.weight)  # the same initial values
        x = torch.randn(2, 6, 4, 4)
        torch.testing.assert_close(layer(x), F.leaky_relu(plain(x), 0.1))
        assert "bias=False" in repr(layer) or bias
        assert "negative_slope=0.1" in repr(layer)
        with pytest.raises(ValueError, match="negative_slope is inf"):
            ours(6, 5, 4, negative_slope=float("inf"))


def test_options_that_only_torch_has():
    layer = Conv2dLeakyReLU(3, 4, 3, padding=1, padding_mode="reflect", negative_slope=0.3)
    plain = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(layer(x), F.leaky_relu(plain(x), 0.3))
    up, other = ConvTranspose2dLeakyReLU(3, 4, 4, 2, 1), nn.ConvTranspose2d(3, 4, 4, 2, 1)
    other.load_state_dict(up.state_dict())
    assert torch.equal(up(x, [11, 10]), F.leaky_relu(other(x, [11, 10]), 0.2))


@needs_library
def test_a_fused_layer_runs_by_the_operator(always):
    net = fuse(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()))
    assert net(torch.randn(2, 8, 4, 4)).grad_fn.name() == "_ConvBackward"
    assert net.double()(torch.randn(2, 8, 4, 4).double()).grad_fn.name() != "_ConvBackward"


def test_fx_records_one_call():
    net = fuse(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ConvTranspose2d(8, 8, 4, 2, 1)))

    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            a, b = self.net
            x = ops.conv2d(x, a.weight, a.bias, 1, 1)
            return ops.conv_transpose2d(x, b.weight, b.bias, 2, 1)

    traced = torch.fx.symbolic_trace(Calls())
    targets = [node.target for node in traced.graph.nodes]
    assert ops.conv2d in targets and ops.conv_transpose2d in targets
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(traced(x), Calls()(x))
