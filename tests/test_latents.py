"""Latents that are noise, and latents of named parts."""

import pytest
import torch
from methods import NAMED

from fastgan import random
from fastgan.latents import OneHot, Uniform, latent


def test_named_parts_of_latents():
    made = latent(NAMED)
    assert made.shape == (8,) and made.drawn == (6,) and not made.is_noise
    z = made.of(random.normal(0, 0, 0, (3000, 6)))
    parts = made.split(z)
    assert torch.equal(torch.cat([*parts.values()], 1), z)
    assert abs(parts["noise"].std() - 1) < 0.05
    assert parts["digit"].sum(1).eq(1).all() and (parts["digit"].mean(0) - 1 / 3).abs().max() < 0.05
    code = parts["code"]
    assert code.min() >= -1 and code.max() <= 1 and abs(code.square().mean() - 1 / 3) < 0.05
    assert latent(made.plain()) == made
    turn = latent({"a": Uniform(1, 0.0, 6.283185307179586)})
    assert latent(turn.plain()) == turn  # to the last digit
    assert latent({"a": "uniform:2:0:3", "b": "4"}).plain() == {"a": "uniform:2:0:3", "b": 4}
    far = torch.full((1, 1), 1e3)
    assert OneHot(4).of(far).argmax() == 3 and OneHot(4).of(-far).argmax() == 0
    for wrong, words in (
        ({}, "expected a length"), ({"a": 0}, "part 'a' is 0"), ({"a": "onehot"}, "onehot:N"),
        ("many", "expected a length"), ({"a": "uniform:2:3:1"}, "part 'a'"), (0, "expected"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            latent(wrong)
