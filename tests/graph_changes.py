"""What a user may change between two runs of the graph engine, and whether it records anew."""

import copy

import torch
from torch import nn


def set_rate(p):
    p.optimizer_g.param_groups[0]["lr"] = 0.01


def fill(p):
    with torch.no_grad():
        next(p.generator.parameters()).fill_(0.01)


def replace_storage(p):
    w = next(p.discriminator.parameters())
    w.data = w.data * 0.5


def load_moments(p):
    state = copy.deepcopy(p.optimizer_d.state_dict())
    for entry in state["state"].values():
        entry["step"] += 5
    p.optimizer_d.load_state_dict(state)


def forget_moments(p):
    p.optimizer_d.state.clear()


def set_betas(p):
    p.optimizer_d.param_groups[0]["betas"] = (0.1, 0.5)


def freeze(p):
    next(p.discriminator.parameters()).requires_grad_(False)


def to_eval(p):
    p.discriminator.eval()


def less_dropout(p):
    for m in p.discriminator.modules():
        if isinstance(m, nn.Dropout):
            m.p = 0.01


def other_slope(p):
    for m in p.generator.modules():
        if isinstance(m, nn.LeakyReLU):
            m.negative_slope = 0.5


def other_momentum(p):
    for m in p.discriminator.modules():
        if isinstance(m, nn.BatchNorm1d):
            m.momentum = 0.4


CHANGES = {
    set_rate: False,
    fill: False,
    replace_storage: True,
    load_moments: True,
    forget_moments: True,
    set_betas: True,
    freeze: True,
    to_eval: True,
    less_dropout: True,
    other_slope: True,
    other_momentum: True,
}
