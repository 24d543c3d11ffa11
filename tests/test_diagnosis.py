"""The words for a training that has broken down."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastgan import NonFiniteLossError, Trainer, data, diagnosis
from fastgan.data import Batch
from fastgan.problem import make_problem


def make(**options):
    g = nn.Sequential(nn.Linear(5, 16), nn.Unflatten(1, (1, 4, 4)))
    d = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    source = torch.linspace(-1, 1, 320).view(20, 1, 4, 4)
    options = {"batch_size": 8, "latent_dim": 5, "device": "cpu", **options}
    return make_problem(g, d, data.open(source), **options)


@pytest.mark.parametrize(
    ("options", "causes"),
    [
        ({"lr": 0.25}, ["learning rate that is too high (lr is 0.25;"]),
        ({"lr": (0.5, 0.25)}, ["lr is 0.25 and 0.5;"]),
        ({"precision": "bf16"}, ["precision 'bf16' (try 'fp32')", ", or a learning rate"]),
        ({"precision": "fp16"}, ["precision 'fp16' (try 'fp32')", ", or a learning rate"]),
        (
            {"loss": "wasserstein"},
            ["Wasserstein critic that nothing keeps Lipschitz (try penalties=", "lr is"],
        ),
    ],
)
def test_likely_causes(options, causes):
    told = diagnosis.likely_cause(make(**options), 1)
    assert all(cause in told for cause in causes)
    assert ("precision" in told) == ("precision" in options)
    assert ("Lipschitz" in told) == ("loss" in options)
    assert "Lipschitz" not in diagnosis.likely_cause(make(**options, penalties="wgan-gp"), 1)


def test_bad_images_are_the_cause_at_the_step_that_saw_them():
    problem = make()
    # Opened images are finite; a data set that is read as needed may still hold others.
    problem.data.samples[13, 0, 2, 2] = float("nan")
    # Three batches make an epoch, and each image is in one of them.
    told = [diagnosis.likely_cause(problem, step) for step in (1, 2, 3)]
    assert sum("real images of that step" in cause for cause in told) == 1
    assert sum("learning rate" in cause for cause in told) == 2


def test_bad_weights_are_found():
    problem = make()
    assert diagnosis.bad_weights(problem) is None
    with torch.no_grad():
        problem.discriminator[1].bias.fill_(float("inf"))
    assert diagnosis.bad_weights(problem) == "discriminator"
    with torch.no_grad():
        problem.generator[0].weight[2, 3] = float("nan")
    assert diagnosis.bad_weights(problem) == "generator"


@pytest.mark.parametrize(
    ("half", "told"),
    [
        (("generator", "discriminator"), "weights of the generator and the discriminator are flo"),
        (("discriminator",), "weights of the discriminator are float16"),
    ],
)
def test_weights_in_half_precision_are_blamed_and_not_the_learning_rate(half, told):
    problem = make(lr=1e-4)
    for name in half:
        getattr(problem, name).half()
    cause = diagnosis.likely_cause(problem, 1)
    assert told in cause and "keep the weights in float32" in cause
    assert "precision='fp16' or 'bf16'" in cause and "learning rate" not in cause


def test_a_run_whose_weights_are_half_is_told_so():
    torch.manual_seed(0)
    g = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.Unflatten(1, (1, 4, 4)))
    d = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))
    source = torch.rand(32, 1, 4, 4) * 2 - 1
    trainer = Trainer(
        g.half(), d.half(), data.open(source), batch_size=8, latent_dim=5, engine="eager",
        device="cpu", log_every=1,
    )  # fmt: skip
    with pytest.raises(NonFiniteLossError, match="weights of the .* float16, in which") as caught:
        trainer.fit(steps=50)
    assert "learning rate" not in str(caught.value)


def test_bad_conditions_are_told_from_bad_images():
    problem = make()
    images = torch.zeros(2, 1, 4, 4)
    for condition, blamed in (
        (torch.tensor([0.0, float("nan")]), True),
        (torch.tensor([0, 1]), False),
        (None, False),
    ):
        source = SimpleNamespace(batch=lambda *_, c=condition: Batch(images, c))
        other = dataclasses.replace(problem, data=source)
        assert ("the conditions of that step's" in diagnosis.likely_cause(other, 1)) == blamed
