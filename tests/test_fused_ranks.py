"""The parts of a fused step that processes take: gradients of a rank's rows, then the move."""

import math
from dataclasses import replace

import pytest
import torch
import written_plans as plans

from fastgan import ops

pytestmark = pytest.mark.skipif(
    not ops.has_kernels(torch.device("cpu")), reason="the CPU library is not built"
)
DEEP = (
    [plans.Layer(6, "elu"), plans.Layer(33, "leaky_relu", drop=0.2), plans.Layer(12, "tanh")],
    [plans.Layer(40, "tanh", drop=0.4), plans.Layer(9, "elu"), plans.Layer(1, "none")],
)


def run_in_parts(case, ranks, steps, fed=False, sums=None):
    """The steps as so many ranks do them, one after another in this process; their statistics.

    `sums`: what the last step is measured by, from there on.
    """
    memories = [case.memory() for _ in range(ranks)]
    rows = []
    per_epoch = -(-case.count // case.batch)
    shared = case.plan, case.settings, case.state
    for step in range(steps):
        row = torch.zeros(4)
        first = step * case.d_steps // per_epoch
        updates = case.d_steps + case.g_steps
        for update in range(updates):
            of_g = update >= case.d_steps
            total = torch.zeros(case.numbers(0 if of_g else 1) + 4)
            last = sums if step + 1 == steps and update >= case.d_steps - 1 else None
            for rank, memory in enumerate(memories):
                gradients = torch.full_like(total, 7.0)
                images, order = case.images, case.order[first * case.count :]
                if fed:
                    number = step * case.d_steps + update
                    at = number // per_epoch * case.count + number % per_epoch * case.batch
                    size = min(case.batch, case.count - number % per_epoch * case.batch)
                    mine = slice(at + rank * size // ranks, at + (rank + 1) * size // ranks)
                    images, order = case.images[case.order[mine]], None
                torch.ops.fastgan.fused_gradients(
                    *shared, memory, images, order, gradients, step, update, rank, ranks,
                    case.threads, None if of_g or last is None else (own := torch.zeros_like(sums)),
                )  # fmt: skip
                total += gradients
                if last is not None and not of_g:
                    last += own
            if not of_g or update + 1 == updates:
                row = total[-4:] + (row if of_g else 0)
            torch.ops.fastgan.fused_move(
                *shared, memories[0], total, case.rates, update, case.threads, last
            )
        rows.append(row)
    return torch.stack(rows)


CASES = {
    "pair": {},
    "odd widths, masks, three updates of D": {"networks": DEEP, "latent": 7, "d_steps": 3},
    "critic with points between": {"loss": 4, "penalties": ((1, 0, 2, 10.0),), "d_steps": 2},
    "curved, at both": {"networks": DEEP, "penalties": ((0, 1, 1, 2.0), (0, 2, 3, 1.0))},
    "several updates of G": {"networks": DEEP, "g_steps": 3, "d_steps": 2},
    "clipped": {"clips": (0.01, 0.05)},
    "bounded": {"clips": (0.003, math.inf)},
    "larger than a block": {"networks": DEEP, "batch": 75, "count": 100},
    "branched": {
        "networks": [[replace(layer, norm=False) for layer in own] for own in plans.BRANCHED],
        "joins": plans.JOINS,
        "penalties": ((1, 0, 1, 10.0), (0, 1, 2, 2.0)),
        "d_steps": 2,
    },
    "one thread": {"threads": 1, "networks": DEEP},
}


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("name", CASES)
def test_the_parts_of_several_ranks_are_the_step_of_one(name, ranks):
    # An epoch ends in a batch of 4 (or 25): of seven ranks, three have none of it.
    whole, parts = plans.Case(**CASES[name]), plans.Case(**CASES[name])
    expected = whole.run(4)
    found = run_in_parts(parts, ranks, 4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(parts.state, whole.state, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("ranks", [1, 2, 7])
@pytest.mark.parametrize("name", CASES)
def test_what_ranks_measure_is_what_one_does(name, ranks):
    whole, parts = plans.Case(**CASES[name]), plans.Case(**CASES[name])
    expected, found = torch.zeros(2, 14, dtype=torch.float64)
    torch.ops.fastgan.fused_run(*whole.arguments(3), sums=expected)
    run_in_parts(parts, ranks, 3, sums=found)
    assert expected[6:].reshape(2, 4)[:, :3].gt(0).all() and expected[9] == expected[13] == 0
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-6, equal_nan=True)


def test_batch_norm_of_one_rank_goes_in_parts_too():
    whole, parts = plans.Case(plans.NORMED), plans.Case(plans.NORMED)
    torch.testing.assert_close(run_in_parts(parts, 1, 3), whole.run(3), rtol=1e-5, atol=1e-5)


def test_ranks_are_fed_their_rows_alone():
    fed, whole = plans.Case(bytes=False), plans.Case(bytes=False)
    torch.testing.assert_close(run_in_parts(fed, 3, 4, fed=True), whole.run(4))
    for a, b in zip(fed.state, whole.state, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)


def parts_of(case):
    gradients = torch.zeros(case.numbers(1) + 4)
    shared = [case.plan, case.settings, case.state, case.memory()]
    return {
        "gradients": [*shared, case.images, case.order, gradients, 0, 0, 0, 2, 1],
        "move": [*shared, gradients, case.rates, 0, 1],
    }


BAD = [
    ("gradients", 6, lambda t: t[1:], r"gradients has 130 elements; expected 127 and the 4"),
    ("gradients", 6, torch.Tensor.double, "gradients must be a contiguous tensor of float32"),
    ("gradients", 5, lambda t: t[:19], "order has 19 elements; expected 20"),
    ("gradients", 5, lambda t: t.fill_(20), "order names an image outside 0 to 19"),
    ("gradients", 5, lambda t: None, "images fed without an order must be float32"),
    ("gradients", 3, lambda t: t[:64], "memory has 64 bytes"),
    ("gradients", 7, lambda n: -1, "first_step is -1"),
    ("gradients", 8, lambda n: 2, "update is 2; expected one of D's, 0 to 0, or of G's, 1 to 1"),
    ("gradients", 8, lambda n: 1, "gradients has 131 elements; expected 120 and the 4"),
    ("gradients", 9, lambda n: 2, "rank is 2 of 2; expected 0 <= rank < ranks"),
    ("gradients", 10, lambda n: 1 << 40, "rank is 0 of 1099511627776"),
    ("gradients", 11, lambda n: 0, "threads is 0"),
    ("move", 4, lambda t: t[1:], "gradients has 130 elements"),
    ("move", 5, lambda t: t.repeat(2, 1), r"rates has shape \[2, 2\]; expected \[2\]"),
    ("move", 6, lambda n: -1, "update is -1"),
    (
        "move",
        2,
        lambda state: [state[0] - 1, *state[1:]],
        "different numbers of steps",
    ),
]


@pytest.mark.parametrize(("part", "at", "change", "message"), BAD)
def test_a_bad_argument_is_an_error_that_names_it(part, at, change, message):
    case = plans.Case()
    arguments = parts_of(case)[part]
    arguments[at] = change(arguments[at])
    before = [t.clone() for t in case.state]
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.fastgan, f"fused_{part}")(*arguments)
    torch.testing.assert_close(case.state, before, rtol=0, atol=0)


def test_statistics_of_a_batch_norm_are_not_those_of_some_rows():
    with pytest.raises(RuntimeError, match="BatchNorm, whose statistics are of all ranks' rows"):
        run_in_parts(plans.Case(plans.NORMED), 2, 1)


def test_gradients_and_what_they_are_made_of_lie_apart():
    arguments = parts_of(plans.Case())["gradients"]
    arguments[6] = arguments[3][: 4 * 131].view(torch.float32)
    with pytest.raises(RuntimeError, match="share memory"):
        torch.ops.fastgan.fused_gradients(*arguments)
