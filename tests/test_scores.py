"""What D's outputs are to a loss: logits, raw scores or probabilities."""

import pytest
import torch
import torch.nn.functional as F
from pairs import SHAPE, discriminator, generator, problem
from torch import nn
from torch.utils.checkpoint import checkpoint

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


# --- probabilities that no sigmoid at the end gives away ------------------------------------------


class Head(nn.Module):
    """Scores in training and in evaluation, by functions of the logits."""

    def __init__(self, train, evaluate=None):
        super().__init__()
        self.body, self.train_end = discriminator(), train
        self.eval_end = evaluate or train

    def forward(self, x):
        return (self.train_end if self.training else self.eval_end)(self.body(x))


PROBABILITIES = {
    "clamped": lambda x: torch.sigmoid(x).clamp(1e-7, 1 - 1e-7),
    "and epsilon": lambda x: torch.sigmoid(x) + 1e-8,
    "hard": F.hardsigmoid,
    "mean of a map": lambda x: torch.sigmoid(x.repeat(1, 4)).mean(1),
    "of tanh": lambda x: 0.5 * (torch.tanh(x) + 1),
}


@pytest.mark.parametrize("engine", ["auto", "eager"])
@pytest.mark.parametrize("end", PROBABILITIES)
def test_probabilities_are_not_taken_for_logits(end, engine):
    d = Head(PROBABILITIES[end])
    with pytest.raises(
        ValueError, match=r"'non-saturating' works on logits.*scores lie in \[0, 1\]"
    ):
        engines.choose(problem(d=d), engine)
    with pytest.raises(ValueError, match="'hinge' works on raw scores.*remove the sigmoid"):
        engines.choose(problem(d=d, loss="hinge"), engine)


class TwoScores(nn.Module):
    """Classes as a classifier has them, of which the second is "real"."""

    def __init__(self, end):
        super().__init__()
        self.fc, self.end = nn.Linear(36, 2), end

    def forward(self, x):
        return self.end(self.fc(x.flatten(1)))


LOGARITHMS = {
    "logsigmoid": lambda: Head(F.logsigmoid),
    "module": lambda: nn.Sequential(discriminator(), nn.LogSigmoid()),
    "log of sigmoid": lambda: Head(lambda x: (torch.sigmoid(x) + 1e-8).log()),
    "mean of a map": lambda: Head(lambda x: F.logsigmoid(x.repeat(1, 4)).mean(1)),
    "log_softmax": lambda: TwoScores(lambda x: F.log_softmax(x, 1)[:, 1]),
    "log of softmax": lambda: TwoScores(lambda x: torch.log(x.softmax(1))[:, :1]),
}


@pytest.mark.parametrize("end", LOGARITHMS)
def test_log_probabilities_are_taken_for_no_scores(end):
    known = losses.LOSSES["hinge"]
    mine = losses.Loss("mine", known.d_loss, known.g_loss)
    for loss, says in (
        ("non-saturating", "'non-saturating' works on logits"),
        ("hinge", "'hinge' works on raw scores"),
        (mine, "'mine' does not say"),
    ):
        with pytest.raises(ValueError, match=f"{says}.* log-probabilities; return the logits"):
            engines.choose(problem(d=LOGARITHMS[end](), loss=loss), "eager")
    raw = losses.Loss("mine", known.d_loss, known.g_loss, scores="raw")
    engine, _ = engines.choose(problem(d=LOGARITHMS[end](), loss=raw), "eager")
    assert engine.run(1).isfinite().all(), "the user's own loss says that it takes them"


def test_scores_that_are_never_above_zero_are_no_logits_but_may_be_raw():
    energy = Head(lambda x: -x.square())
    with pytest.raises(ValueError, match="works on logits.* never above 0"):
        engines.choose(problem(d=energy), "eager")
    for d in (energy, Head(lambda x: -torch.log1p(x.square()))):
        assert engines.choose(problem(d=d, loss="wasserstein"), "eager")


@pytest.mark.parametrize("sigmoid", [nn.Sigmoid(), nn.Hardsigmoid()])
@pytest.mark.parametrize("dropout", [nn.Dropout(0.5), Head(lambda x: x)])
def test_dropout_behind_a_sigmoid_hides_no_probabilities(sigmoid, dropout):
    if isinstance(dropout, Head):
        dropout = Head(lambda x: F.dropout(x, 0.5))
        dropout.body = nn.Identity()
    d = nn.Sequential(discriminator(), sigmoid, dropout)
    with pytest.raises(ValueError, match="works on logits.* dropout behind them"):
        engines.choose(problem(d=d))
    with pytest.raises(ValueError, match="works on raw scores.* dropout behind them"):
        engines.choose(problem(d=d, loss="hinge"))
    plain = nn.Sequential(discriminator(), nn.Softplus(), nn.Dropout(0.5))
    assert engines.choose(problem(d=plain), "eager")


@pytest.mark.parametrize("bias", [0.0, 0.4])
def test_a_fresh_discriminators_small_scores_are_no_probabilities(bias):
    d = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
    with torch.no_grad():
        d[3].weight.mul_(1e-3)
        d[3].bias.fill_(bias)
    for network in (d, nn.Sequential(d, nn.Softplus())):
        assert engines.choose(problem(d=network), "eager")[0].run(1).isfinite().all()


def test_logits_in_training_and_probabilities_in_evaluation_are_logits():
    plain, both = (problem(d=Head(lambda x: x, end)) for end in (None, torch.sigmoid))
    for name in ("generator", "discriminator"):
        getattr(both, name).load_state_dict(getattr(plain, name).state_dict())
    found = engines.choose(both, "eager")[0].run(3)
    assert torch.equal(found, EagerEngine(plain).run(3))
    assert engines.choose(problem(d=Head(lambda x: x, torch.sigmoid), loss="hinge"), "eager")


class SigmoidInTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(36, 1)

    def forward(self, x):
        x = self.fc(x.flatten(1))
        return torch.sigmoid(x) if self.training else x


def test_a_sigmoid_in_training_only_is_absorbed_by_every_engine():
    def make():
        g = nn.Sequential(nn.Linear(5, 36), nn.Tanh(), nn.Unflatten(1, SHAPE))
        return problem(g, SigmoidInTraining())

    p, q = make(), make()
    q.generator.load_state_dict(p.generator.state_dict())
    q.discriminator.load_state_dict(p.discriminator.state_dict())
    fused, eager = engines.choose(p)[0], EagerEngine(q)
    torch.testing.assert_close(fused.run(3)[:, :2], eager.run(3)[:, :2], rtol=1e-5, atol=1e-6)


def test_a_users_own_loss_that_says_nothing_is_asked_where_it_matters():
    """A hinge under another name must not be trained through the sigmoid of D."""
    known = losses.LOSSES["hinge"]
    mine = losses.Loss("mine", known.d_loss, known.g_loss)
    for d in (Discriminator(SHAPE), Head(PROBABILITIES["clamped"])):
        with pytest.raises(
            ValueError, match="'mine' does not say .*'probabilities'.*'logits'.*'raw'"
        ):
            engines.choose(problem(d=d, loss=mine))
    p, q = problem(loss=mine), problem(loss="hinge")
    q.generator.load_state_dict(p.generator.state_dict())
    q.discriminator.load_state_dict(p.discriminator.state_dict())
    assert torch.equal(engines.choose(p)[0].run(3), EagerEngine(q).run(3))


def test_a_users_own_loss_on_logits_absorbs_a_sigmoid_whatever_its_name():
    known = losses.LOSSES["non-saturating"]
    mine = losses.Loss("hinge", known.d_loss, known.g_loss, scores="logits")
    p, q = problem(d=Discriminator(SHAPE), loss=mine), problem(d=Discriminator(SHAPE))
    q.generator.load_state_dict(p.generator.state_dict())
    q.discriminator.load_state_dict(p.discriminator.state_dict())
    assert torch.equal(engines.choose(p, "eager")[0].run(3), EagerEngine(q).run(3))


@pytest.mark.parametrize("end", ["module", "module, then a view", "torch.sigmoid"])
def test_a_hook_sees_the_probabilities_that_a_sigmoid_makes(end):
    seen = []
    p, q = problem(d=Ends(ENDS[end])), problem(d=Ends(ENDS[end]))
    q.generator.load_state_dict(p.generator.state_dict())
    q.discriminator.load_state_dict(p.discriminator.state_dict())
    p.discriminator.act.register_forward_hook(lambda m, _, out: seen.append(out.detach()))
    p.discriminator.register_forward_hook(lambda m, _, out: seen.append(out.detach()))
    assert torch.equal(EagerEngine(p).run(2), EagerEngine(q).run(2))
    assert seen and all(((s > 0) & (s < 1)).all() for s in seen)


def test_a_sigmoid_that_comes_or_goes_between_two_runs_is_noticed():
    p, q = problem(d=Head(lambda x: x)), problem(d=Head(lambda x: x))
    q.generator.load_state_dict(p.generator.state_dict())
    q.discriminator.load_state_dict(p.discriminator.state_dict())
    engine, other = EagerEngine(p), EagerEngine(q)
    engine.run(1), other.run(1)
    for end in (torch.sigmoid, lambda x: x, nn.Sigmoid()):
        p.discriminator.train_end = end
        assert torch.equal(engine.run(2), other.run(2))


@pytest.mark.parametrize("end", [nn.Sigmoid(), nn.Hardsigmoid()])
def test_a_generator_of_values_above_zero_is_told_once(end, caplog):
    g = nn.Sequential(nn.Linear(5, 36), end, nn.Unflatten(1, SHAPE))
    engines.choose(problem(g))
    assert caplog.text.count("the generator's outputs lie in [0, 1]") == 1
    caplog.clear()
    engines.choose(problem())
    assert caplog.text == ""


# --- losses that are none -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("d_loss", "message"),
    [
        (lambda real, fake: fake - real, r"'mine': d_loss returned a tensor \[8\]; .* the mean"),
        (lambda real, fake: (fake - real).mean().item(), "d_loss returned -?[0-9.e-]+; .* tensor"),
        (lambda real, fake: (fake - real).detach().mean(), "without a gradient"),
        (lambda real, fake: real.nonsense, "d_loss failed on scores of shape .*nonsense"),
    ],
)
def test_a_loss_that_is_no_scalar_is_told_before_the_first_step(d_loss, message):
    mine = losses.Loss("mine", d_loss, lambda fake: -fake.mean(), scores="raw")
    with pytest.raises(ValueError, match=message):
        engines.choose(problem(loss=mine), "eager")


def test_a_loss_with_a_state_is_not_tried_but_told_by_the_first_step():
    calls = []

    def d_loss(real, fake):
        calls.append(1)
        return fake - real

    mine = losses.Loss("mine", d_loss, lambda fake: -fake.mean(), scores="raw")
    engine, _ = engines.choose(problem(loss=mine), "eager")
    assert not calls
    with pytest.raises(ValueError, match="'mine': d_loss returned a tensor"):
        engine.run(1)


@pytest.mark.parametrize("inside", [False, True])
def test_a_hook_that_returns_a_sigmoid_is_seen(inside):
    def sigmoid(module, args, out):
        return torch.sigmoid(out)

    plain, hooked = problem(), problem()
    d = hooked.discriminator
    (d.body[-1] if inside else d).register_forward_hook(sigmoid)
    expected, got = EagerEngine(plain).run(3), EagerEngine(hooked).run(3)
    assert torch.equal(got, expected)


def test_a_hook_that_returns_a_sigmoid_is_refused_by_a_raw_loss():
    p = problem(loss="hinge")
    p.discriminator.register_forward_hook(lambda module, args, out: torch.sigmoid(out))
    with pytest.raises(ValueError, match="a hook of the discriminator returns a sigmoid"):
        EagerEngine(p).run(1)


# --- gradients that do not come through -----------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, sigmoid, reentrant):
        super().__init__()
        self.body, self.sigmoid, self.reentrant = discriminator(), sigmoid, reentrant

    def forward(self, x):
        x = x if x.requires_grad or not self.reentrant else x.detach().requires_grad_()
        return checkpoint(lambda x: self.sigmoid(self.body(x)), x, use_reentrant=self.reentrant)


def test_a_sigmoid_within_a_checkpoint_is_absorbed_or_told():
    for sigmoid, reentrant in (
        (torch.sigmoid, False),
        (nn.Sigmoid(), False),
        (nn.Sigmoid(), True),
    ):
        plain = problem(d=Checkpointed(nn.Identity(), reentrant))
        absorbed = problem(d=Checkpointed(sigmoid, reentrant))
        absorbed.generator.load_state_dict(plain.generator.state_dict())
        absorbed.discriminator.load_state_dict(plain.discriminator.state_dict())
        assert torch.equal(EagerEngine(absorbed).run(3), EagerEngine(plain).run(3))
    engine = EagerEngine(problem(d=Checkpointed(torch.sigmoid, True)))
    with pytest.raises(ValueError, match="reentrant activation checkpoint.*use_reentrant=False"):
        engine.run(1)


def without(x, body):
    with torch.no_grad():
        return body(x)


CUTS = {
    "no_grad": without,
    "detach": lambda x, body: body(x).detach(),
    "data": lambda x, body: body(x).data,
}


class Cut(nn.Module):
    def __init__(self, body, how):
        super().__init__()
        self.body, self.how = body, CUTS[how]

    def forward(self, x):
        return self.how(x, self.body)


class CutInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.end = nn.Linear(36, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.end(self.body(x.flatten(1)).detach())


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_a_network_that_cuts_its_gradient_is_named_and_not_the_loss(how, engine):
    mine = losses.Loss("mine", lambda r, f: (f - r).mean(), lambda f: -f.mean(), scores="raw")
    for loss in ("non-saturating", mine):
        p = problem(d=Cut(discriminator(), how), loss=loss)
        with pytest.raises(ValueError, match="^the discriminator's scores have no gradient, so"):
            engines.choose(p, engine)[0].run(1)
        p = problem(g=Cut(generator(), how), loss=loss)
        with pytest.raises(ValueError, match="^the generator's samples have no gradient"):
            engines.choose(p, engine)[0].run(1)
        p = problem(d=CutInside(), loss=loss)
        with pytest.raises(ValueError, match="^the discriminator's scores .* respect to its input"):
            engines.choose(p, engine)[0].run(1)
