"""LinearLeakyReLU, and the exchange of neighbours in a tree of modules."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from fastgan.nn import LinearLeakyReLU, fuse, unfuse


class Nested(nn.Module):
    """Pairs at several depths, with and without dropout, beside layers that must stay."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(6, 5), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(5, 4), nn.Tanh()
        )
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Linear(4, 4, bias=False), nn.LeakyReLU(0.01, inplace=True))]
        )
        self.body = nn.Sequential(nn.Sequential(nn.Linear(4, 3), nn.LeakyReLU()), nn.Linear(3, 1))

    def forward(self, x):
        return self.body(self.blocks[0](self.fc(x)))


def describe(module):
    return [(name, type(m), m.extra_repr(), m.training) for name, m in module.named_modules()]


def test_module_is_linear_then_leaky_relu():
    torch.manual_seed(0)
    ours = LinearLeakyReLU(7, 3, negative_slope=0.1)
    torch.manual_seed(0)
    linear = nn.Linear(7, 3)
    assert list(ours.state_dict()) == ["weight", "bias"]
    for key, value in linear.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value)  # the same initial values
    x = torch.randn(2, 4, 7)
    torch.testing.assert_close(ours(x), nn.functional.leaky_relu(linear(x), 0.1))


def test_module_options():
    ours = LinearLeakyReLU(3, 2, bias=False, device="meta", dtype=torch.float64)
    assert ours.bias is None and list(ours.state_dict()) == ["weight"]
    assert ours.weight.dtype == torch.float64 and ours.weight.is_meta
    assert "in_features=3, out_features=2, bias=False, negative_slope=0.2" in repr(ours)
    with pytest.raises(ValueError, match="negative_slope is inf"):
        LinearLeakyReLU(3, 2, negative_slope=float("inf"))


def test_fuse_keeps_keys_values_and_parameters():
    torch.manual_seed(0)
    net = Nested()
    plain = copy.deepcopy(net)
    parameters = dict(net.named_parameters())
    keys = list(net.state_dict())
    assert fuse(net) is net
    assert [type(net.fc[i]) for i in (0, 1, 2)] == [
        LinearLeakyReLU,
        type(net.fc[1]),
        nn.Dropout,
    ]
    assert isinstance(net.fc[1], nn.Identity)
    assert isinstance(net.blocks[0][0], LinearLeakyReLU)
    assert isinstance(net.body[0][0], LinearLeakyReLU)
    assert type(net.fc[3]) is nn.Linear and type(net.body[1]) is nn.Linear
    assert list(net.state_dict()) == keys
    assert all(p is parameters[name] for name, p in net.named_parameters())
    net.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(net.state_dict(), strict=True)

    x = torch.randn(9, 6)
    outputs = []
    for module in (net, plain):
        torch.manual_seed(1)
        module.zero_grad()
        y = module(x)
        y.square().sum().backward()
        outputs.append([y, *(p.grad for p in module.parameters())])
    for a, b in zip(*outputs, strict=True):
        torch.testing.assert_close(a, b)


def test_unfuse_gives_the_original_back():
    net = Nested()
    net.fc.eval()
    net.fc[0].weight.requires_grad_(False)
    before, keys, parameters = describe(net), list(net.state_dict()), list(net.parameters())
    state = torch.get_rng_state()
    fuse(net)
    assert not net.fc[0].training and not net.fc[0].weight.requires_grad
    assert unfuse(net) is net
    assert torch.equal(torch.get_rng_state(), state)
    assert describe(net) == before and list(net.state_dict()) == keys
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert net.blocks[0][1].inplace


def test_fuse_twice_and_deepcopy():
    net = fuse(fuse(Nested()))
    twin = unfuse(copy.deepcopy(net))
    assert type(twin.fc[0]) is nn.Linear and type(net.fc[0]) is LinearLeakyReLU
    net.eval(), twin.eval()
    x = torch.randn(3, 6)
    torch.testing.assert_close(net(x), twin(x))


def test_unfuse_leaves_hand_written_layers():
    net = nn.Sequential(LinearLeakyReLU(3, 3), nn.Identity())
    assert type(unfuse(net)[0]) is LinearLeakyReLU


class OwnLinear(nn.Linear):
    pass


class OwnLeaky(nn.LeakyReLU):
    pass


class OwnOrder(nn.Sequential):
    def forward(self, x):
        return self[0](self[1](x))


def hooked(which):
    net = nn.Sequential(nn.Linear(3, 3), nn.LeakyReLU())
    net[which].register_forward_hook(lambda module, inputs, output: output + 1)
    return net


def patched():
    net = nn.Sequential(nn.Linear(3, 3), nn.LeakyReLU())
    net[1].forward = lambda x: x
    return net


def parametrised():
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)), nn.LeakyReLU())


def shared():
    linear = nn.Linear(3, 3)
    return nn.Sequential(linear, nn.LeakyReLU(), linear, nn.LeakyReLU())


def pruned():
    linear = nn.Linear(3, 3)
    prune.l1_unstructured(linear, "weight", amount=1)
    return nn.Sequential(linear, nn.LeakyReLU())


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(OwnLinear(3, 3), nn.LeakyReLU()),
        lambda: nn.Sequential(nn.Linear(3, 3), OwnLeaky()),
        lambda: nn.Sequential(nn.Linear(3, 3), nn.ReLU()),
        lambda: nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.LeakyReLU()),
        lambda: OwnOrder(nn.Linear(3, 3), nn.LeakyReLU()),
        lambda: nn.ModuleList([nn.Linear(3, 3), nn.LeakyReLU()]),
        lambda: hooked(0),
        lambda: hooked(1),
        patched,
        parametrised,
        shared,
        pruned,
    ],
)
def test_fuse_leaves_alone_what_it_would_break(make):
    net = make()
    before = describe(net)
    fuse(net)
    assert describe(net) == before


def test_tied_weights_stay_tied():
    net = nn.Sequential(nn.Linear(3, 3), nn.LeakyReLU(), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    fuse(net)
    assert isinstance(net[0], LinearLeakyReLU) and net[2].weight is net[0].weight


def test_a_container_used_twice_is_fused_once():
    block = nn.Sequential(nn.Linear(3, 3), nn.LeakyReLU())
    net = nn.Sequential(block, block)
    x = torch.randn(2, 3)
    expected = net(x)
    fuse(net)
    assert net[0] is net[1] and isinstance(block[0], LinearLeakyReLU)
    torch.testing.assert_close(net(x), expected)


def test_optimizer_stays_valid():
    net = nn.Sequential(nn.Linear(3, 3), nn.LeakyReLU())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    fuse(net)
    before = net[0].weight.detach().clone()
    net(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(net[0].weight, before)


def test_conversion_of_a_fused_network():
    net = fuse(nn.Sequential(nn.Linear(3, 3), nn.LeakyReLU())).double()
    assert net(torch.randn(2, 3).double()).dtype == torch.float64
    assert unfuse(net)[0].weight.dtype == torch.float64
