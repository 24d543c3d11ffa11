"""The theory of GANs, computed: against numbers that are known, and against each other."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import same
from small_runs import own, small
from torch import nn

from fastgan import random, theory

LOG4, LOG2 = math.log(4), math.log(2)


def weights(t):
    return [p.detach().clone() for n in (t.generator, t.discriminator) for p in n.parameters()]


def network(*, dim=1, width=16):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(dim, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(),
            nn.Linear(width, 1),
        ).double()  # fmt: skip


# --- densities -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", theory.DENSITIES)
def test_samples_are_where_the_density_is(name):
    one = theory.density(name)
    x, labels = one.sample(4000, seed=3)
    assert x.dtype == torch.float32 and x.shape == (4000, 2) and labels.dtype == torch.int64
    assert torch.equal(one.sample(4000, seed=3)[0], x)
    assert not torch.equal(one.sample(4000, seed=4)[0], x)
    assert not torch.equal(one.sample(4000, seed=3, step=1)[0], x)
    assert x.abs().max() < 1 or name == "gaussian"
    counts = torch.bincount(labels, minlength=len(one.modes)) / 4000
    assert len(counts) == len(one.modes)
    assert (counts - 1 / len(one.modes)).abs().max() < 0.03
    low, high = one.box()
    assert bool(((x >= low) & (x <= high)).all())
    if isinstance(one, theory.Mixture):
        off = (x - one.means[labels]) / one.scales[labels, None]
        assert abs(float(off.std()) - 1) < 0.03 and abs(float(off.mean())) < 0.03


def test_the_moons_are_two_half_circles():
    one = theory.density("moons")
    x, labels = one.sample(2000)
    r = one.radius
    for label, side in ((0, 1), (1, -1)):
        off = x[labels == label] - torch.tensor([-side * r / 2, -side * r / 4])
        assert abs(float(off.norm(dim=1).mean()) - r) < 0.01
        assert float((side * off[:, 1] > -4 * one.scale).float().mean()) == 1
    with pytest.raises(ValueError, match="known by its samples only"):
        theory.jsd(one, theory.density("ring8"))


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.tuples(st.floats(-3, 3), st.floats(0.1, 2), st.floats(0.1, 5)), min_size=1,
             max_size=4),
    st.integers(1, 2),
)  # fmt: skip
def test_a_mixture_is_the_sum_of_its_normals(parts, dim):
    means, scales, sizes = (torch.tensor(v, dtype=torch.float64) for v in zip(*parts, strict=True))
    one = theory.Mixture(means[:, None].expand(-1, dim), scales, sizes)
    x = torch.linspace(-4, 4, 9, dtype=torch.float64)[:, None].expand(-1, dim)
    expected = 0
    for mean, scale, size in zip(means, scales, sizes, strict=True):
        each = torch.distributions.Normal(mean, scale).log_prob(x).sum(1).exp()
        expected = expected + size / sizes.sum() * each
    assert torch.allclose(one.log_prob(x).exp(), expected, rtol=1e-9, atol=1e-300)


def test_a_mixture_refuses_numbers_that_do_not_fit():
    with pytest.raises(ValueError, match=r"scales is \[1.0, 2.0, 3.0\]; expected 2 numbers above"):
        theory.Mixture([0.0, 1.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="weights is"):
        theory.Mixture([0.0, 1.0], 1.0, [1.0, 0.0])
    with pytest.raises(ValueError, match="means is"):
        theory.Mixture([], 1.0)
    with pytest.raises(ValueError, match="density is 'rign8'"):
        theory.density("rign8")


# --- exactly -------------------------------------------------------------------------------------


def test_the_divergence_by_quadrature_is_that_of_many_samples():
    p, q = theory.normal(0.0, 1.0), theory.Mixture([-1.0, 1.5], [0.3, 0.5], [1, 2])
    exact = theory.jsd(p, q)
    assert exact.error < 1e-7
    v = theory.value(
        theory.optimal_logits(p, q), p.sample(200_000)[0], q.sample(200_000, step=1)[0]
    )
    assert abs((v.value + LOG4) / 2 - exact.value) < 4 * v.error / 2 and v.error < 0.01


@pytest.mark.parametrize("dim", [1, 2])
def test_the_divergence_at_its_ends(dim):
    p = theory.normal([0.3] * dim, 0.7)
    same_ = theory.jsd(p, theory.normal([0.3] * dim, 0.7))
    assert abs(same_.value) <= 1e-7 >= same_.error
    # Where G has found the data D* knows nothing, and V is -log 4.
    v = theory.value(None, p, p)
    assert abs(v.value + LOG4) < 1e-7
    x = p.sample(100)[0]
    assert torch.equal(theory.optimal_discriminator(p, p)(x), torch.full((100,), 0.5).double())
    far = theory.jsd(p, theory.normal([40.0] * dim, 0.7))
    assert abs(far.value - LOG2) < 1e-6
    assert theory.jsd(p, far_ := theory.normal([1.0] * dim, 0.4)).value == pytest.approx(
        theory.jsd(far_, p).value, abs=1e-7
    )


def test_in_two_dimensions_it_is_that_of_one_where_they_differ_in_one():
    p, q = (theory.normal(m, 0.5) for m in (0.0, 0.8))
    p2, q2 = (theory.normal((m, 0.1), 0.5) for m in (0.0, 0.8))
    assert abs(theory.jsd(p, q).value - theory.jsd(p2, q2).value) < 1e-6


def test_no_discriminator_has_a_greater_value_than_the_best():
    p, q = theory.normal(0.0, 1.0), theory.normal(1.0, 0.8)
    best = theory.value(None, p, q)
    assert best.value == pytest.approx(2 * theory.jsd(p, q).value - LOG4, abs=1e-9)
    logits = theory.optimal_logits(p, q)
    for shift in (-0.5, 0.5):
        other = theory.value(lambda x, shift=shift: logits(x.double()) + shift, p, q)
        assert other.value < best.value - 0.01
    # D = 1/2 everywhere, also as probabilities that come out of a sigmoid.
    half = nn.Sequential(nn.Linear(1, 1), nn.Sigmoid()).double()
    nn.init.zeros_(half[0].weight), nn.init.zeros_(half[0].bias)
    assert theory.value(half, p, q).value == pytest.approx(-LOG4, abs=1e-6)


def test_a_discriminator_trained_to_optimality_is_the_best_one():
    p, q = theory.normal(-0.5, 1.0), theory.Mixture([-1.0, 1.5], [0.5, 0.6], [1, 2])
    d = network(width=12)
    v = theory.fit(d, p, q, steps=100)
    assert abs(v.value - (2 * theory.jsd(p, q).value - LOG4)) < 1e-3
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)[:, None]
    found = torch.sigmoid(d(x))[:, 0]
    assert (found - theory.optimal_discriminator(p, q)(x)).abs().max() < 0.03


def test_what_is_compared_must_be_comparable():
    p = theory.normal(0.0, 1.0)
    with pytest.raises(ValueError, match="real has 1 dimensions and fake 2"):
        theory.jsd(p, theory.density("ring8"))
    with pytest.raises(ValueError, match="one or two"):
        theory.jsd(theory.normal([0.0] * 3), theory.normal([0.0] * 3))
    with pytest.raises(ValueError, match="a grid of 1e.18 points would be needed"):
        theory.jsd(theory.normal((0.0, 0.0), 1e-6), theory.normal((1000.0, 1000.0), 1.0))
    with pytest.raises(ValueError, match="real and fake are Mixture and Tensor"):
        theory.value(None, p, torch.zeros(3, 1))


# --- of samples ----------------------------------------------------------------------------------


def bound(p, q, n=3000, **options):
    real, fake = p.sample(n, seed=1)[0], q.sample(n, seed=2)[0]
    options = {"steps": 150, "batch_size": 64, **options}
    if "network" not in options:
        options["network"] = theory.critic((p.dim,), width=24)
    return theory.jsd_lower_bound(real, fake, **options)


def test_the_bound_from_samples_is_below_the_divergence_and_near_it():
    torch.manual_seed(0)
    p, q = theory.normal([0.0, 0.0], 1.0), theory.normal([1.5, 0.0], 1.0)
    exact, found = theory.jsd(p, q).value, bound(p, q)
    assert exact - 0.05 < found.value < exact + 3 * found.error
    assert 0 < found.error < 0.02 and found.steps == 150 and found.seconds > 0


def test_samples_of_one_density_have_no_bound_above_zero_even_where_a_critic_learns_by_heart():
    torch.manual_seed(0)
    p = theory.normal([0.0] * 10, 1.0)
    found = bound(p, p, n=60, network=theory.critic((10,), width=64), steps=60)
    assert found.value < 3 * found.error + 0.01


def test_the_bound_is_the_same_for_the_same_seed_and_moves_no_random_state():
    p, q = theory.normal([0.0, 0.0], 1.0), theory.normal([1.0, 0.0], 1.0)
    state = torch.get_rng_state()
    one, two = (bound(p, q, network=None, steps=5) for _ in range(2))
    assert one[:3] == two[:3]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_bound_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match=r"real is \[30, 2\] and fake \[30, 3\]"):
        theory.jsd_lower_bound(torch.zeros(30, 2), torch.zeros(30, 3))
    with pytest.raises(ValueError, match="expected 20 of each"):
        theory.jsd_lower_bound(torch.zeros(30, 2), torch.zeros(19, 2))


# --- of a run ------------------------------------------------------------------------------------


def test_the_gap_of_a_run_leaves_it_as_it_is():
    t = own()
    t.fit(steps=5)
    before, state = weights(t), torch.get_rng_state()
    gap = theory.duality_gap(t, steps=30, lr=1e-3)
    assert gap.value == pytest.approx(gap.d_side + gap.g_side) and gap.value > 0
    assert (gap.steps, gap.seconds > 0) == (30, True)
    assert all(map(torch.equal, before, weights(t)))
    assert torch.equal(torch.get_rng_state(), state) and t.generator.training
    twin = own()
    twin.fit(steps=10)
    t.fit(steps=10)
    same(*(weights(one) for one in (t, twin)))


def test_the_gap_is_nothing_where_neither_can_do_better():
    class Still(nn.Module):
        """Makes what the data are: nothing."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(1))

        def forward(self, z):
            return z[:, :1] * 0 * self.scale

    blind = nn.Linear(1, 1)
    nn.init.zeros_(blind.weight), nn.init.zeros_(blind.bias)
    t = own(pair=lambda: (Still(), blind), data=torch.zeros(64, 1), d_steps=1)
    gap = theory.duality_gap(t, steps=20, lr=0.1)
    assert gap.value < 1e-6 and gap.here == pytest.approx(-LOG4, abs=1e-6)


def test_the_gap_of_another_loss_is_refused():
    with pytest.raises(ValueError, match="the loss is 'hinge'"):
        theory.duality_gap(small(loss="hinge"))
    with pytest.raises(ValueError, match="make it at most half of them"):
        theory.duality_gap(small(batch_size=40))


def test_streams_of_densities_are_their_own():
    streams = [int(s) for s in random.Stream]
    # From DROPOUT and from CHOICE on each module has a stream of its own.
    last = [random.Stream.DROPOUT, random.Stream.CHOICE]
    assert len(set(streams)) == len(streams) and sorted(streams)[-2:] == last
