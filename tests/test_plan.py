"""What becomes a plan, and the reason when nothing does."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

import fastgan
from fastgan.engines.fused import plan
from fastgan.engines.fused.chain import absorb_sigmoid
from fastgan.models import Discriminator, Generator
from fastgan.nn import LinearLeakyReLU


def chain(module, shape=(12,), name="generator"):
    return plan.read(module, name, shape)


def summary(c):
    return [
        (
            layer.linear.out_features,
            layer.norm is not None,
            layer.activation,
            layer.slope,
            layer.dropout.p if layer.dropout else 0,
        )
        for layer in c.layers
    ]


def test_reference_pair():
    assert summary(chain(Generator(), (100,))) == [
        (256, False, "leaky_relu", 0.2, 0),
        (784, False, "tanh", 0.0, 0),
    ]
    d = chain(Discriminator(), (1, 28, 28), "discriminator")
    assert summary(d) == [(256, False, "leaky_relu", 0.2, 0.3), (1, False, "sigmoid", 0.0, 0)]
    assert absorb_sigmoid(d)
    assert d.layers[-1].activation == "none"
    assert not absorb_sigmoid(d)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.ReLU(), ("leaky_relu", 0.0)),
        (nn.LeakyReLU(0.37), ("leaky_relu", 0.37)),
        (nn.ELU(0.5), ("elu", 0.5)),
        (nn.Tanh(), ("tanh", 0.0)),
        (nn.Sigmoid(), ("sigmoid", 0.0)),
        (nn.GELU(), ("gelu", 0.0)),
        (nn.GELU(approximate="tanh"), ("gelu_tanh", 0.0)),
        (nn.SiLU(), ("silu", 0.0)),
        (nn.SELU(), ("selu", 0.0)),
        (nn.Softplus(), ("softplus", 0.0)),
        (nn.Identity(), ("none", 0.0)),
    ],
)
def test_activation_modules(module, expected):
    (layer,) = chain(nn.Sequential(nn.Linear(12, 5), module)).layers
    assert (layer.activation, layer.slope) == expected


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: F.leaky_relu(x, 0.3), ("leaky_relu", 0.3)),
        (lambda x: F.leaky_relu(x), ("leaky_relu", 0.01)),
        (lambda x: F.leaky_relu(x, negative_slope=0.1, inplace=True), ("leaky_relu", 0.1)),
        (lambda x: F.relu(x), ("leaky_relu", 0.0)),
        (lambda x: x.relu(), ("leaky_relu", 0.0)),
        (lambda x: x.relu_(), ("leaky_relu", 0.0)),
        (lambda x: F.selu(x, inplace=True), ("selu", 0.0)),
        (lambda x: torch.selu(x), ("selu", 0.0)),
        (lambda x: F.softplus(x), ("softplus", 0.0)),
        (lambda x: torch.relu(x), ("leaky_relu", 0.0)),
        (lambda x: F.elu(x, 0.7), ("elu", 0.7)),
        (lambda x: x.tanh(), ("tanh", 0.0)),
        (lambda x: F.gelu(x), ("gelu", 0.0)),
        (lambda x: F.gelu(x, approximate="tanh"), ("gelu_tanh", 0.0)),
        (lambda x: F.silu(x, inplace=True), ("silu", 0.0)),
        (lambda x: torch.sigmoid(x), ("sigmoid", 0.0)),
    ],
)
def test_activation_functions(function, expected):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(12, 5)

        def forward(self, x):
            return function(self.fc(x))

    (layer,) = chain(Net()).layers
    assert (layer.activation, layer.slope) == expected


def test_every_part_in_order():
    net = nn.Sequential(
        nn.Linear(12, 9, bias=False),
        nn.BatchNorm1d(9),
        nn.Identity(),
        nn.LeakyReLU(0.1),
        nn.Dropout(0.4),
        nn.Dropout(0.0),
        LinearLeakyReLU(9, 6, negative_slope=0.25),
        nn.Linear(6, 3),
        nn.Dropout(0.2),
    )
    c = chain(net)
    assert summary(c) == [
        (9, True, "leaky_relu", 0.1, 0.4),
        (6, False, "leaky_relu", 0.25, 0),
        (3, False, "none", 0.0, 0.2),
    ]
    # modules() counts the one that drops nothing, too
    assert [layer.dropout_index for layer in c.layers] == [0, 0, 2]
    assert c.layers[0].parameters[1] is None


def test_a_layer_norm_takes_the_place_of_a_batch_norm():
    norms = nn.LayerNorm(9, eps=0.1), nn.LayerNorm(6, bias=False)
    net = nn.Sequential(nn.Linear(12, 9), norms[0], nn.GELU(), nn.Linear(9, 6), norms[1])
    layers = chain(net.eval()).layers
    assert [layer.norm for layer in layers] == [*norms]
    assert [layer.batch_norm for layer in layers] == [None, None]
    assert layers[0].parameters[2:] == (norms[0].weight, norms[0].bias)
    assert layers[1].parameters[2:] == (norms[1].weight, None)


def test_fused_modules_read_as_their_originals():
    assert summary(chain(fastgan.nn.fuse(Generator()), (100,))) == summary(
        chain(Generator(), (100,))
    )


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.view(x.size(0), -1),
        lambda x: x.view(x.shape[0], x.shape[1] * x.shape[2]),
        lambda x: x.reshape(x.size()[0], 12),
        lambda x: x.flatten(1),
        lambda x: torch.flatten(x, start_dim=1),
        lambda x: torch.reshape(x, (-1, 12)),
        lambda x: x.unsqueeze(1).squeeze(1).flatten(1),
    ],
)
def test_views_keep_the_batch_in_front(view):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(12, 6)

        def forward(self, x):
            return self.fc(view(x)).view(x.size(0), 2, 3)

    (layer,) = chain(Net(), (3, 4)).layers
    assert layer.linear.out_features == 6


def test_flatten_and_unflatten_modules():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Unflatten(1, (2, 3)))
    assert len(chain(net, (3, 4)).layers) == 1


class Call(nn.Module):
    """One Linear, then a function of (its output, its input)."""

    def __init__(self, function, features=12):
        super().__init__()
        self.fc = nn.Linear(12, features)
        self.function = function

    def forward(self, x):
        return self.function(self.fc(x), x)


class Between(Call):
    """Something between two Linears of what the first makes and takes."""

    def __init__(self, function, *modules):
        super().__init__(function)
        self.last = nn.Sequential(*modules, nn.Linear(12, 3))

    def forward(self, x):
        return self.last(super().forward(x))


class Data(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 12)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else x


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 12)

    def forward(self, x):
        return self.fc(self.fc(x))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 12)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.fc(x) * self.scale


def tied():
    a, b = nn.Linear(12, 12), nn.Linear(12, 12)
    b.weight = a.weight
    return nn.Sequential(a, b)


def hooked():
    net = nn.Sequential(nn.Linear(12, 12))
    net[0].register_forward_hook(lambda *_: None)
    return net


def frozen():
    net = nn.Sequential(nn.Linear(12, 12))
    net[0].bias.requires_grad_(False)
    return net


def sequence(*modules):
    return nn.Sequential(nn.Linear(12, 12), *modules)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (
            nn.Sequential(nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 3, 1)),
            "generator.1: Conv2d has no fused form",
        ),
        (sequence(nn.Softsign()), "generator.1: Softsign has no fused form"),
        (sequence(nn.Softplus(2.0)), "generator.1: Softplus of this kind has no fused form"),
        (sequence(nn.AlphaDropout(0.1)), "generator.1: AlphaDropout has no fused form"),
        (
            sequence(nn.ReLU(), nn.BatchNorm1d(12)),
            "generator.2: BatchNorm1d is fused only after a Linear",
        ),
        (
            sequence(nn.ReLU(), nn.LayerNorm(12)),
            "generator.2: LayerNorm is fused only after a Linear, before its activation",
        ),
        (
            sequence(nn.Unflatten(1, (3, 4)), nn.LayerNorm(4)),
            "generator.2: LayerNorm is fused on [batch, features] only",
        ),
        (sequence(nn.LayerNorm(11)), "generator.1: LayerNorm over (11,), but gets 12 features"),
        (sequence(nn.BatchNorm1d(12), nn.LayerNorm(12)), "generator.2: LayerNorm is fused only"),
        (nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 2)), "LayerNorm before the first Linear"),
        (Call(lambda y, x: F.layer_norm(y, (12,))), "layer_norm has no fused form"),
        (sequence(nn.GELU("cubic")), "generator.1: GELU of this kind has no fused form"),
        (sequence(nn.ReLU(), nn.Tanh()), "generator.2: Tanh is fused only after"),
        (sequence(nn.Dropout(), nn.Tanh()), "generator.2: Tanh is fused only after"),
        (sequence(nn.Dropout(), nn.ReLU(), nn.ReLU()), "generator.3: ReLU is fused only after"),
        (
            sequence(nn.Dropout(), nn.ReLU(), nn.Dropout()),
            "generator.3: Dropout is fused only after",
        ),
        (sequence(nn.ReLU(), nn.Dropout(), nn.ReLU()), "generator.3: ReLU is fused only after"),
        (sequence(nn.Dropout(), nn.Dropout()), "generator.2: Dropout is fused only after"),
        (
            nn.Sequential(nn.Dropout(), nn.Linear(12, 12)),
            "generator.0: Dropout before the first Linear",
        ),
        (
            sequence(nn.LeakyReLU(-0.1)),
            "generator.1: LeakyReLU is fused with a slope of at least 0",
        ),
        (
            sequence(nn.BatchNorm1d(12).eval()),
            "generator.1: BatchNorm1d is in eval mode; call .train()",
        ),
        (nn.Sequential(nn.Unflatten(1, (3, 4)), nn.Linear(4, 4)), "flatten it first"),
        (nn.Sequential(nn.Linear(11, 4)), "generator.0: takes 11 features, but gets 12"),
        (parametrizations.spectral_norm(nn.Linear(12, 12)), "generator"),
        (nn.Sequential(parametrizations.spectral_norm(nn.Linear(12, 12))), "parametrized"),
        (nn.Sequential(spectral_norm(nn.Linear(12, 12))), "generator.0: hooks would not be called"),
        (Call(lambda y, x: y + x), "generator ends in a sum or a concatenation"),
        (Between(lambda y, x: y + 1), "add has no fused form"),
        (Between(lambda y, x: y.add(x, alpha=2)), "a sum is fused of two tensors of one shape"),
        (Between(lambda y, x: y + x[:, :1]), "getitem before the first Linear has no fused form"),
        (
            Between(lambda y, x: F.relu(y) + y),
            "takes what generator.fc makes before it is complete",
        ),
        (Between(lambda y, x: x + y * F.sigmoid(y)), "mul has no fused form"),
        (Between(lambda y, x: torch.cat([y, x])), "a concatenation is fused along dimension 1"),
        (Between(lambda y, x: torch.cat([y], 1)), "a concatenation of 1 tensors has no fused form"),
        (
            Between(lambda y, x: torch.cat([y.view(-1, 3, 4), x], 1)),
            "a concatenation is fused of tensors of as many dimensions",
        ),
        (Between(lambda y, x: x), "generator.fc: the output does not depend on it"),
        (
            Between(lambda y, x: y + x, nn.BatchNorm1d(12)),
            "BatchNorm1d on a sum or a concatenation",
        ),
        (Call(lambda y, x: F.dropout(y)), "use nn.Dropout"),
        (Call(lambda y, x: x), "does not return what the last of its layers makes"),
        (Call(lambda y, x: y.flatten(0)), "mixes the samples of a batch"),
        (Call(lambda y, x: y.t()), "t has no fused form"),
        (Call(lambda y, x: F.relu(x)), "relu before the first Linear has no fused form"),
        (Data(), "torch.fx cannot trace its forward"),
        (Shared(), "generator.fc: a Linear that is used twice"),
        (Scaled(), "scale"),
        (tied(), "a parameter that two layers share"),
        (hooked(), "generator.0: hooks would not be called"),
        (frozen(), "generator.0.bias: requires_grad is False"),
        (sequence().double(), "generator.0.weight: is float64; float32 is fused"),
        (nn.Sequential(nn.Flatten()), "generator has no Linear layer"),
    ],
)
def test_reasons(module, reason):
    with pytest.raises(plan.NoPlan) as error:
        chain(module)
    assert reason in str(error.value)


def test_a_network_that_is_one_layer_is_a_chain():
    assert summary(chain(nn.Linear(12, 5))) == [(5, False, "none", 0.0, 0)]
    assert summary(chain(LinearLeakyReLU(12, 5, negative_slope=0.1))) == [
        (5, False, "leaky_relu", 0.1, 0)
    ]
    assert chain(nn.Linear(12, 5)).layers[0].name == "generator"
    with pytest.raises(plan.NoPlan, match="^generator: Conv1d has no fused form"):
        chain(nn.Conv1d(12, 5, 1))


class OwnLinear(nn.Linear):
    pass


@pytest.mark.parametrize("inside", [False, True])
def test_a_layer_of_a_users_own_class_is_named(inside):
    network = sequence(OwnLinear(12, 5)) if inside else OwnLinear(12, 5)
    where = r"generator\.1" if inside else "generator"
    with pytest.raises(plan.NoPlan, match=f"^{where}: OwnLinear computes with its own tensor 'wei"):
        chain(network)


def test_a_rectifier_and_a_dropout_before_it_change_places():
    (layer,) = chain(sequence(nn.Dropout(0.5), nn.LeakyReLU(0.3))).layers
    assert (layer.activation, layer.slope, layer.dropout.p) == ("leaky_relu", 0.3, 0.5)


def test_a_dropout_in_eval_mode_drops_nothing():
    (layer,) = chain(sequence(nn.Dropout(0.5).eval())).layers
    assert layer.dropout is None
