"""What a snapshot notices, and the sentence that says it."""

import copy
import sys
import types
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastgan.engines.snapshot import Snapshot


@dataclass
class Options:
    gain: float = 2.0
    names: list = field(default_factory=lambda: ["a"])


@dataclass(slots=True)
class Slotted:
    gain: float = 2.0


class Squash:
    """Called as a layer is, and none."""

    def __init__(self):
        self.slope = 0.1

    def __call__(self, x):
        return F.leaky_relu(x, self.slope)


class Net(nn.Module):
    depth = 3

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(0.1), nn.Linear(4, 3))
        self.norm = nn.BatchNorm1d(3)
        self.options, self.table = Options(), {"scales": [1, 2], "on": True}
        self.slotted, self.squash, self.unlisted = Slotted(), Squash(), [nn.LeakyReLU(0.1)]
        self.partial = partial(F.leaky_relu, negative_slope=0.1)

    def forward(self, x):
        return self.helper(x)

    def helper(self, x):
        return self.norm(self.body(x))


def noted(*_):
    pass


def make():
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    net(torch.ones(4, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return net, optimizer


def whole(net, optimizer, **options):
    return Snapshot({"net": net, "none": None}, {"adam": optimizer}, states=True, **options)


def replace_memory(t):
    t.data = t.data.clone()


CHANGES = {
    "layer": (
        lambda n, o: n.body.__setitem__(1, nn.ReLU()),
        "net.body: a layer was added, removed",
    ),
    "append": (lambda n, o: n.body.append(nn.ReLU()), "net.body: a layer was added, removed"),
    "mode": (lambda n, o: n.norm.eval(), "net.norm: it was switched between training and"),
    "forward": (
        lambda n, o: setattr(n.body, "forward", noted),
        "net.body: its forward was replaced",
    ),
    "hook": (lambda n, o: n.body[0].register_forward_hook(noted), "net.body.0: a hook was added"),
    "attribute": (
        lambda n, o: setattr(n.body[1], "negative_slope", 0.2),
        "net.body.1: its attribute negative_slope was changed",
    ),
    "new attribute": (lambda n, o: setattr(n, "other", 1), "net: its attribute other was changed"),
    "in a record": (lambda n, o: setattr(n.options, "gain", 3.0), "net: its attribute options"),
    "in a list of a record": (
        lambda n, o: n.options.names.append("b"),
        "net: its attribute options",
    ),
    "in a table": (lambda n, o: n.table["scales"].append(3), "net: its attribute table"),
    "fields of a record": (
        lambda n, o: setattr(n.options, "__dict__", {"gain": 2.0, "names": []}),
        "net: its attribute options",
    ),
    "slot": (lambda n, o: setattr(n.slotted, "gain", 3.0), "net: its attribute slotted"),
    "of what is called": (lambda n, o: setattr(n.squash, "slope", 0.2), "net: its attribute sq"),
    "keyword": (
        lambda n, o: n.partial.keywords.update(negative_slope=0.2),
        "net: its attribute partial",
    ),
    "layer in a list": (
        lambda n, o: setattr(n.unlisted[0], "negative_slope", 0.2),
        "net: its attribute unlisted",
    ),
    "parameter": (
        lambda n, o: setattr(n.body[0], "bias", nn.Parameter(torch.ones(4))),
        "net.body.0: bias is another tensor",
    ),
    "no parameter": (
        lambda n, o: setattr(n.body[0], "bias", None),
        "net.body.0: bias was added or removed",
    ),
    "memory": (lambda n, o: replace_memory(n.body[0].weight), "net.body.0: weight: its memory"),
    "strides": (
        lambda n, o: setattr(n.body[0].weight, "data", n.body[0].weight.data.t()),
        "net.body.0: weight: its shape changed",
    ),
    "frozen": (
        lambda n, o: n.body[2].weight.requires_grad_(False),
        "net.body.2: weight: its requires_grad changed",
    ),
    "gradient hook": (
        lambda n, o: n.body[2].weight.register_hook(noted),
        "net.body.2: weight: its gradient hooks changed",
    ),
    "buffer": (
        lambda n, o: setattr(n.norm, "running_mean", torch.zeros(3)),
        "net.norm: running_mean is another tensor",
    ),
    "betas": (lambda n, o: o.param_groups[0].update(betas=(0.1, 0.2)), "adam: betas changed"),
    "group": (
        lambda n, o: o.add_param_group({"params": [torch.ones(1, requires_grad=True)]}),
        "adam: a group of parameters was added",
    ),
    "members": (lambda n, o: o.param_groups[0]["params"].pop(), "adam: its parameters are others"),
    "step hook": (lambda n, o: o.register_step_pre_hook(noted), "adam: a step hook was added"),
    "step": (lambda n, o: setattr(o, "step", noted), "adam: its step was replaced"),
    "moment": (
        lambda n, o: o.state[n.body[0].weight].update(exp_avg=torch.zeros(4, 3)),
        "adam: its state is another",
    ),
    "state": (
        lambda n, o: o.load_state_dict(copy.deepcopy(o.state_dict())),
        "adam: its state is another",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_noticed_and_said(name):
    net, optimizer = make()
    snapshot = whole(net, optimizer)
    assert snapshot.difference() is None
    change, sentence = CHANGES[name]
    change(net, optimizer)
    assert snapshot.difference().startswith(sentence)
    assert whole(net, optimizer).difference() is None


def test_steps_and_rates_are_no_changes():
    net, optimizer = make()
    snapshot = whole(net, optimizer)
    for _ in range(3):
        net(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    optimizer.param_groups[0]["lr"] = 0.5
    torch.optim.lr_scheduler.StepLR(optimizer, 2)
    assert snapshot.difference() is None


def test_what_a_class_says_counts():
    class Own(nn.Module):
        slope = 0.1

        def forward(self, x):
            return self.inner(x)

        def inner(self, x):
            return x

    net = Own()
    for name, value in (("slope", 0.2), ("inner", noted), ("forward", noted)):
        snapshot = Snapshot({"net": net})
        setattr(Own, name, value)
        assert snapshot.difference() == "net: the code of its class was changed"
    snapshot = Snapshot({"net": net})
    net.__class__ = nn.Identity
    assert snapshot.difference() == "net: it is of another class"


def test_hooks_for_all_modules_and_other_values_count():
    values = {"rounding": "ieee"}
    snapshot = Snapshot({}, also=lambda: values)
    values["rounding"] = "tf32"
    assert snapshot.difference() == "rounding was changed"
    values["rounding"] = "ieee"
    handle = nn.modules.module.register_module_forward_hook(noted)
    assert "hooks for all modules" in snapshot.difference()
    handle.remove()
    assert snapshot.difference() is None


def test_attributes_that_changed_are_listed_and_can_be_left_out():
    net, optimizer = make()
    snapshot = Snapshot({"net": net})
    net.body[1].calls, net.options.gain = 1, 5.0
    assert snapshot.changed() == [("net", "options"), ("net.body.1", "calls")]
    less = Snapshot({"net": net}, but=snapshot.changed())
    net.body[1].calls, net.options.gain = 2, 6.0
    assert less.difference() is None
    net.table["on"] = False
    assert less.difference() == "net: its attribute table was changed"


def test_what_torch_computes_anew_is_no_change():
    net = nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 3)))
    net(torch.ones(2, 3))
    snapshot = Snapshot({"net": net})
    net(torch.ones(2, 3))
    assert snapshot.difference() is None


def test_a_network_that_holds_itself_and_strange_values():
    net = nn.Linear(2, 2)
    loop: list = [1]
    loop.append(loop)
    net.loop, net.me, net.nan, net.empty = loop, [net], float("nan"), nn.Parameter(torch.empty(0))
    net.lazy = nn.LazyLinear(3)
    snapshot = Snapshot({"net": net})
    assert snapshot.difference() is None
    net.nan = 1.0
    assert snapshot.difference() == "net: its attribute nan was changed"


GAIN = 2.0
LAYER = nn.LeakyReLU(0.1)
SETTINGS = {"slopes": {"first": 0.1}}
space = types.ModuleType("space")
space.gain = 1.0


class Constants:
    gain = 1.0


def helper(x, deep=1.0):
    return x * SETTINGS["slopes"]["first"] * deep


def again(x, deep=1.0):
    return x * SETTINGS["slopes"]["first"] * deep * 2


def closed():
    factor = 1.0

    def forward(x):
        return x * factor

    def change():
        nonlocal factor
        factor = 3.0

    return forward, change


class Outside(nn.Module):
    def __init__(self):
        super().__init__()
        self.function, self.change = closed()
        self.other, self.change_other = closed()

    def forward(self, x):
        x = LAYER(self.other(x))
        return [self.function(helper(x)) * GAIN for _ in range(1)][0] * Constants.gain * space.gain


OUTSIDE_CHANGES = {
    "global": (lambda m, net: m.setattr(sys.modules[__name__], "GAIN", 3.0), "GAIN"),
    "no global": (lambda m, net: m.delattr(sys.modules[__name__], "GAIN"), "GAIN"),
    "in a global": (lambda m, net: m.setitem(SETTINGS, "slopes", {"first": 0.2}), "SETTINGS"),
    "deep in one": (lambda m, net: m.setitem(SETTINGS["slopes"], "first", 0.2), "SETTINGS"),
    "helper": (lambda m, net: m.setattr(sys.modules[__name__], "helper", noted), "helper"),
    "default": (lambda m, net: m.setattr(helper, "__defaults__", (2.0,)), "the defaults of"),
    "class": (lambda m, net: m.setattr(Constants, "gain", 2.0), "Constants.gain"),
    "module": (lambda m, net: m.setattr(space, "gain", 2.0), "space.gain"),
    "closure": (lambda m, net: net.change(), "factor in"),
    "of one name": (lambda m, net: net.change_other(), "factor in"),
    "layer": (lambda m, net: m.setattr(LAYER, "negative_slope", 0.2), "LAYER"),
    "reloaded": (lambda m, net: m.setattr(helper, "__code__", again.__code__), "the code of"),
}


@pytest.mark.parametrize("name", OUTSIDE_CHANGES)
def test_what_functions_read_from_elsewhere_counts(name, monkeypatch):
    net = Outside()
    snapshot = Snapshot({"net": net})
    assert snapshot.difference() is None
    change, words = OUTSIDE_CHANGES[name]
    change(monkeypatch, net)
    told = snapshot.difference()
    assert words in told and told.endswith(" was changed")
    assert Snapshot({"net": net}).difference() is None
    assert Snapshot({"net": net}, but=snapshot.changed()).difference() is None


def test_a_global_that_nothing_reads_is_no_change(monkeypatch):
    snapshot = Snapshot({"net": Outside()})
    monkeypatch.setattr(sys.modules[__name__], "noted", None)
    assert snapshot.difference() is None


def test_looking_again_is_spared_as_long_as_all_is_as_it_was(monkeypatch):
    net, optimizer = make()
    snapshot = whole(net, optimizer)
    looks = []
    look = Snapshot._look
    monkeypatch.setattr(Snapshot, "_look", lambda self: looks.append(1) or look(self))
    for _ in range(2):
        net(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        assert snapshot.difference() is None
    assert not looks
    # An equal object in the place of another is looked at once.
    net.options.names = ["a"]
    assert [snapshot.difference() for _ in range(2)] == [None, None]
    assert len(looks) == 1
