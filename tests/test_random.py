"""The counter-based generator: known answers, agreement with the reference, and the statistics of
what it draws.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastgan import random
from fastgan.engines import draws
from fastgan.ops import library, reference
from fastgan.random import Stream

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

seeds = st.integers(0, 2**64 - 1)
streams = st.integers(0, 2**32 - 1)
steps = st.integers(0, 2**64 - 1)

# The file kat_vectors of the Random123 distribution, philox4x32-10: counter, key, result.
KNOWN = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox_in_integers(counter, key):
    """Philox written a second time, from the paper, in Python's own integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b % 2**32, (a >> 32) ^ c[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter, key, expected):
    words = reference.philox4x32(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(w) for w in words) == expected
    assert tuple(philox_in_integers(counter, key)) == expected


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers_through_the_public_function(counter, key, expected, device):
    block, stream, low, high = counter
    seed, step = key[0] | key[1] << 32, low | high << 32
    words = random.words(seed, stream, step, 4, start=4 * block, device=device)
    assert tuple(words.tolist()) == expected


@given(seeds, streams, steps, st.integers(0, 2**32 - 1))
def test_reference_is_philox(seed, stream, step, block):
    expected = philox_in_integers(
        (block, stream, step % 2**32, step >> 32), (seed % 2**32, seed >> 32)
    )
    assert reference.philox_words(seed, stream, step, 4 * block, 4).tolist() == expected


@pytest.mark.parametrize("device", DEVICES)
@given(seed=seeds, stream=streams, step=steps, start=st.integers(0, 2000), n=st.integers(0, 1500))
def test_words_equal_the_reference(seed, stream, step, start, n, device):
    drawn = random.words(seed, stream, step, n, start=start, device=device)
    assert drawn.dtype == torch.int64
    assert torch.equal(drawn.cpu(), reference.philox_words(seed, stream, step, start, n))


@pytest.mark.parametrize("device", DEVICES)
@given(seed=seeds, step=steps, n=st.integers(0, 1500), p=st.floats(0, 1))
def test_uniforms_masks_and_normals_equal_the_reference(seed, step, n, p, device):
    drawn = random.uniform(seed, 3, step, n, device=device).cpu()
    assert torch.equal(drawn, reference.philox_uniform(seed, 3, step, n))
    mask = random.keep_mask(seed, 64, step, n, p, device=device).cpu()
    threshold = reference.keep_threshold(p)
    assert torch.equal(mask, reference.philox_keep_mask(seed, 64, step, n, threshold))
    normal = random.normal(seed, 0, step, n, device=device).cpu()
    expected = reference.philox_normal(seed, 0, step, n)
    assert n == 0 or (normal - expected).abs().max() <= 2e-6


def test_normals_stay_within_the_bound_on_a_million():
    drawn = random.normal(11, 0, 5, (1000, 1001))
    expected = reference.philox_normal(11, 0, 5, 1001000).view(1000, 1001)
    assert (drawn - expected).abs().max() <= 2e-6


def test_result_does_not_depend_on_the_number_of_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [random.normal(1, 0, 2, 300001), random.words(1, 0, 2, 300001, start=3)]
        torch.set_num_threads(max(2, before))
        together = [random.normal(1, 0, 2, 300001), random.words(1, 0, 2, 300001, start=3)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_element_does_not_depend_on_the_size_of_the_draw():
    assert torch.equal(random.normal(9, 1, 4, 100), random.normal(9, 1, 4, (50, 20)).view(-1)[:100])
    long = random.keep_mask(9, 64, 4, 1000, 0.3)
    assert torch.equal(random.keep_mask(9, 64, 4, 77, 0.3), long[:77])


N = 1 << 20


def test_moments_of_uniforms():
    u = random.uniform(1, 3, 0, N).double()
    assert u.min() >= 0 and u.max() < 1
    # Five standard errors each.
    assert abs(u.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / N)
    assert abs(u.square().mean() - 1 / 3) < 5 * math.sqrt((1 / 5 - 1 / 9) / N)
    counts = torch.histc(u, 256, 0, 1)
    chi_square = ((counts - N / 256).square() / (N / 256)).sum()
    assert abs(chi_square - 255) < 5 * math.sqrt(2 * 255)


@pytest.mark.parametrize("half", [slice(0, None, 2), slice(1, None, 2), slice(None)])
def test_moments_of_normals(half):
    # Even and odd elements separately: one is a cosine, the other a sine, and a dropped sign shows
    # in the first moment.
    z = random.normal(2, 0, 0, N)[half].double()
    n = z.numel()
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs((z**power).mean() - expected) < 5 * math.sqrt(variance / n), power


def test_tails_of_normals():
    z = random.normal(3, 0, 0, 4 * N).double()
    for bound in (1.0, 2.0, 3.0, 4.0):
        for tail in (z > bound, z < -bound):
            p = math.erfc(bound / math.sqrt(2)) / 2
            assert abs(tail.double().mean() - p) < 5 * math.sqrt(p / z.numel()) + 1e-9, bound
    # The largest radius is sqrt(-2 ln 2**-24) = 5.77, and a draw of four million comes near it.
    assert 4.5 < z.abs().max() < 5.78


def test_normal_quadrants_are_equally_likely():
    z = random.normal(4, 0, 0, N).view(-1, 2)
    quadrant = (z[:, 0] > 0) * 2 + (z[:, 1] > 0)
    counts = torch.bincount(quadrant, minlength=4).double()
    assert ((counts - N / 8).abs() < 5 * math.sqrt(N / 8)).all()


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 6},
        {"seed": 5 + 2**32},
        {"stream": 1},
        {"stream": Stream.DROPOUT},
        {"step": 1},
        {"step": 2**32},
        {"shift": 1},
        {"shift": 2},
        {"shift": 4},
    ],
    ids=str,
)
def test_draws_are_uncorrelated(other):
    base = {"seed": 5, "stream": 0, "step": 0}
    shift = other.get("shift", 0)
    moved = {**base, **{k: v for k, v in other.items() if k != "shift"}}
    a = random.normal(**base, shape=N).double()[: N - shift]
    b = random.normal(**moved, shape=N).double()[shift:]
    n = a.numel()
    assert abs((a * b).mean()) < 5 / math.sqrt(n)
    # Squares see dependence that signs hide (sine and cosine share a radius, which must not show).
    assert abs(((a.square() - 1) * (b.square() - 1)).mean()) < 5 * 2 / math.sqrt(n)


def test_consecutive_steps_and_streams_share_no_words():
    draws = [random.words(0, stream, step, 512) for stream in range(4) for step in range(4)]
    everything = torch.cat(draws)
    expected = everything.numel() ** 2 / 2 / 2**32  # birthday collisions of independent words
    assert everything.numel() - everything.unique().numel() <= expected + 5


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0, 1e-6])
def test_keep_mask_is_unbiased(p):
    mask = random.keep_mask(8, 64, 0, N, p).double()
    threshold = reference.keep_threshold(p)
    keep = threshold / 65536
    assert abs(mask.mean() - keep) <= 5 * math.sqrt(keep * (1 - keep) / N)
    scale = random.keep_scale(p)
    assert scale == (65536 / threshold if threshold else 0)
    assert threshold == 0 or scale * keep == pytest.approx(1, rel=1e-15)


def test_keep_mask_is_sixteen_bit_halves():
    words = random.words(3, 64, 7, 8).tolist()
    halves = [h for w in words for h in (w & 0xFFFF, w >> 16)]
    expected = [h < round(0.7 * 65536) for h in halves]
    assert random.keep_mask(3, 64, 7, (4, 4), 0.3).view(-1).tolist() == expected


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_permutation(n, device):
    order = random.permutation(3, 1, n, device=device).cpu()
    assert torch.equal(order.sort().values, torch.arange(n))
    words = reference.philox_words(3, Stream.ORDER, 1, 0, n).tolist()
    assert order.tolist() == sorted(range(n), key=lambda i: words[i])
    assert n < 3 or not torch.equal(order, random.permutation(3, 2, n))


def test_normal_writes_into_out():
    out = torch.empty(3, 5)
    assert random.normal(1, 2, 3, (3, 5), out=out) is out
    assert torch.equal(out, random.normal(1, 2, 3, (3, 5)))
    for bad in (torch.empty(3, 4), torch.empty(3, 5).double(), torch.empty(5, 3).t()):
        with pytest.raises(ValueError, match="out has shape"):
            random.normal(1, 2, 3, (3, 5), out=bad)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((-1, 0, 0, 1), "seed"),
        ((2**64, 0, 0, 1), "seed"),
        ((0, -1, 0, 1), "stream"),
        ((0, 2**32, 0, 1), "stream"),
        ((0, 0, -1, 1), "step"),
        ((0, 0, 2**64, 1), "step"),
        ((0, 0, 0, -1), "elements"),
        ((0, 0, 0, 2**34 + 1), "elements"),
    ],
)
def test_arguments_out_of_range(arguments, name):
    with pytest.raises(ValueError, match=name):
        random.words(*arguments)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_drop_probability_out_of_range(p):
    with pytest.raises(ValueError, match="p is"):
        random.keep_mask(0, 64, 0, 4, p)
    with pytest.raises(ValueError, match="p is"):
        random.keep_scale(p)


@pytest.mark.skipif("cpu" not in library.KERNELS, reason="the CPU library is not built")
def test_reference_road_gives_the_same(monkeypatch):
    shape = (7, 9)
    drawn = [
        random.uniform(1, 2, 3, shape),
        random.normal(1, 2, 3, shape),
        random.keep_mask(1, 2, 3, shape, 0.4),
        random.words(1, 2, 3, 63, start=5),
    ]
    monkeypatch.setattr(library, "KERNELS", frozenset())
    again = [
        random.uniform(1, 2, 3, shape),
        random.normal(1, 2, 3, shape),
        random.keep_mask(1, 2, 3, shape, 0.4),
        random.words(1, 2, 3, 63, start=5),
    ]
    for a, b in zip(drawn, again, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


def test_no_two_kinds_of_draws_share_a_stream():
    first = (draws.PENALTY_STREAM, draws.AROUND_STREAM)
    players = range(draws.CONDITION_STREAM, draws.CONDITION_STREAM + 3)
    numbers = [*random.Stream, *first, *players, draws.METHOD_STREAM, draws.AUGMENT_STREAM]
    assert len(set(numbers)) == len(numbers)
    dropouts = random.Stream.DROPOUT
    assert all(n <= dropouts or n >= draws.METHOD_STREAM for n in numbers)
