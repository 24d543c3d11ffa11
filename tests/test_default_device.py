"""A program's own default device does not count: a run is where the setting `device` says.

The default of these tests is "meta", whose tensors have no values: whatever is made there by
mistake fails as it would on a GPU beside tensors of the CPU.
"""

import ast
from pathlib import Path

import pytest
import torch
from pairs import SHAPE, discriminator, generator, same, weights

import fastgan
from fastgan import Trainer

PACKAGE = Path(fastgan.__file__).parent
FACTORIES = {
    *("empty", "zeros", "ones", "full", "tensor", "as_tensor", "scalar_tensor"),
    *("arange", "linspace", "eye", "rand", "randn", "randint", "randperm"),
}
OF_THE_PROGRAM = {"models/r3gan.py", "metrics/small_classifier.py"}
"""Weights of modules, which a program makes where it likes."""


def test_every_tensor_is_made_on_a_device_that_is_named():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).as_posix() in OF_THE_PROGRAM:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
            named = any(k.arg in ("device", None) for k in node.keywords)
            if of_torch and node.func.attr in FACTORIES and not named:
                found.append(f"{path.name}:{node.lineno}: torch.{node.func.attr}")
    assert not found, "say device="


@pytest.fixture
def elsewhere():
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


OPTIONS = {"latent_dim": 5, "batch_size": 8, "device": "cpu", "ema": 0.5, "log_every": 2}


def pair():
    with torch.device("cpu"):
        torch.manual_seed(4)
        return generator(), discriminator()


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_a_run_trains_saves_draws_and_resumes(tmp_path, elsewhere, engine):
    with torch.device("cpu"):
        images = torch.rand(22, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
        whole = Trainer(*pair(), images, **OPTIONS, engine=engine)
        whole.fit(steps=7)
    run = Trainer(*pair(), images, **OPTIONS, engine=engine, out=tmp_path)
    run.fit(steps=3)
    assert (tmp_path / "samples.png").exists()
    resumed = Trainer.resume(tmp_path, *pair(), images)
    resumed.fit(steps=7)
    for name in ("generator", "discriminator", "ema"):
        assert same(weights(getattr(resumed, name)), weights(getattr(whole, name)))


@pytest.mark.parametrize("model", ["mlp", "dcgan", "points"])
def test_networks_of_ours_have_the_weights_of_the_seed(elsewhere, model):
    data, size = ("ring8", {}) if model == "points" else ("digits", {"image_size": 32})
    options = {"model": model, "width": 8, "device": "cpu", **size}
    here = Trainer(None, None, data, **options)
    with torch.device("cpu"):
        there = Trainer(None, None, data, **options)
    assert same(weights(here.generator), weights(there.generator))
    assert here.fit(steps=2)["d_loss"] == there.fit(steps=2)["d_loss"]
