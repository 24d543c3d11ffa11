"""What D's outputs are to a loss: logits, raw scores or probabilities."""

import pytest
import torch
import torch.nn.functional as F
from pairs import SHAPE, discriminator, problem
from torch import nn

from fastgan import engines, losses
from fastgan.engines.eager import EagerEngine
from fastgan.engines.scores import FinalSigmoid, final_sigmoid
from fastgan.models import Discriminator


class Ends(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.body = discriminator()
        self.act = nn.Sigmoid()
        self.end = end

    def forward(self, x):
        return self.end(self, self.body(x))


ENDS = {
    "module": lambda d, x: d.act(x),
    "module, then a view": lambda d, x: d.act(x).view(-1),
    "module used twice": lambda d, x: d.act(x + 0 * d.act(x)),
    "torch.sigmoid": lambda d, x: torch.sigmoid(x),
    "method": lambda d, x: x.sigmoid().squeeze(1),
    "functional": lambda d, x: F.sigmoid(x),
    "in place": lambda d, x: (x * 1).sigmoid_(),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_final_sigmoid_is_absorbed_exactly(end):
    plain = problem(d=Ends(lambda d, x: x))
    with_sigmoid = problem(d=Ends(ENDS[end]))
    with_sigmoid.discriminator.load_state_dict(plain.discriminator.state_dict())
    with_sigmoid.generator.load_state_dict(plain.generator.state_dict())
    for p in (plain, with_sigmoid):
        with torch.no_grad():
            p.discriminator.body.body[-1].bias.fill_(30.0)  # float32 probabilities are 1 from 17 on
    engine, other = EagerEngine(with_sigmoid), EagerEngine(plain)
    found = engine.run(3)
    torch.testing.assert_close(found, other.run(3), rtol=1e-6, atol=0)
    assert found[0, 0] > 25
    assert "absorbed" in engine.describe() and "absorbed" not in other.describe()
    score = with_sigmoid.discriminator(torch.zeros(2, *SHAPE))
    assert (score <= 1).all(), "outside of run, D gives probabilities as before"


@pytest.mark.parametrize(
    "end",
    [
        lambda d, x: d.act(x) * 2 - 1,
        lambda d, x: x + 0 * torch.sigmoid(x),
        lambda d, x: torch.cat([d.act(x), d.act(x)], 1).mean(1),
    ],
)
def test_a_sigmoid_that_is_not_the_end_is_left_alone(end):
    p = problem(d=Ends(end))
    assert final_sigmoid(p)[0] is None
    assert torch.isfinite(EagerEngine(p).run(1)).all()


def test_a_sigmoid_changed_in_place_is_not_the_end():
    x = torch.zeros(3)
    with FinalSigmoid() as trace:
        y = torch.sigmoid(x)
        assert trace.input_of(y) is x and trace.input_of(y.view(3, 1)) is x
        assert trace.input_of(y[:2]) is None and trace.input_of(y + 0) is None
        assert trace.input_of(y.mul_(3)) is None


@pytest.mark.parametrize("loss", ["hinge", "least-squares", "wasserstein"])
def test_games_on_raw_scores_refuse_a_sigmoid(loss):
    for d in (Discriminator(SHAPE), Ends(ENDS["torch.sigmoid"])):
        with pytest.raises(ValueError, match=f"loss '{loss}' works on raw scores.*remove"):
            engines.choose(problem(d=d, loss=loss), "eager")
    p = problem(loss=loss)
    engine, _ = engines.choose(p, "eager")
    assert torch.isfinite(engine.run(3)).all()


def test_a_users_own_loss_on_probabilities_gets_them():
    mine = losses.Loss(
        "mine",
        lambda real, fake: fake.mean() - real.mean(),
        lambda fake: -fake.mean(),
        scores="probabilities",
    )
    engine, _ = engines.choose(problem(d=Discriminator(SHAPE), loss=mine), "eager")
    found = engine.run(2)
    assert found[:, :2].abs().max() < 1
    assert ((found[:, 2:] > 0) & (found[:, 2:] < 1)).all()
    with pytest.raises(ValueError, match="works on probabilities, but .* scores from"):
        engines.choose(problem(d=discriminator(), loss=mine), "eager")
