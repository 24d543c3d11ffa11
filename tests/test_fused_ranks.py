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
LABELS = (
    (plans.Part("embedding", 4, 6),),
    (plans.Part("one_hot", 6, 6), plans.Part("embedding", 7, 6)),
)
NUMBERS = ((plans.Part("numbers", 3),), (plans.Part("numbers", 3),))
ASKED = tuple(replace(head, asked=head.kind != "columns") for head in plans.HEADS)
HALF_NORMED = ([plans.Layer(70, "elu", norm=True), *plans.NORMED[0]], DEEP[1])


def rows_of_moments(case, ranks):
    """Of each rank, where sums of BatchNorms travel; None without any."""
    widths = [layer.out for network in case.networks for layer in network if layer.norm]
    widths += [case.image for kind, _ in case.terms if kind == 0]
    if ranks == 1 or not widths:
        return [None] * ranks
    return list(torch.full((ranks, ranks, 4 * max(widths)), math.nan, dtype=torch.float64))


def batch_of(case, number, per_epoch):
    """Which samples an update of D takes."""
    at = number // per_epoch * case.count + number % per_epoch * case.batch
    return case.order[at : min(at + case.batch, (number // per_epoch + 1) * case.count)]


def gradients_of_ranks(case, memories, states, moments, scores, fed, step, update):
    """Of one update, the ranks meeting wherever it stops."""
    ranks, phase = len(memories), 0
    size = case.numbers(0 if update >= case.d_steps else 1) + 4
    own = [torch.full((size,), 7.0) for _ in range(ranks)]
    per_epoch = -(-case.count // case.batch)
    first = step * case.d_steps // per_epoch
    while True:
        ended = set()
        for rank, memory in enumerate(memories):
            images, order = case.images, case.order[first * case.count :]
            condition, places = case.given(step, 1)
            if fed:
                numbers = range(step * case.d_steps, (step + 1) * case.d_steps)
                batches = [batch_of(case, number, per_epoch) for number in numbers]
                batch = batches[min(update, case.d_steps - 1)]
                mine = slice(rank * len(batch) // ranks, (rank + 1) * len(batch) // ranks)
                images, order = case.images[batch[mine]], None
                if condition is not None:
                    condition = condition[torch.cat(batches)]
            ended.add(
                torch.ops.fastgan.fused_gradients(
                    case.plan, case.settings, states[rank], memory, images, order, own[rank], step,
                    update, rank, ranks, case.threads, scores[rank], phase, moments[rank],
                    condition, places,
                )
            )  # fmt: skip
        (phase,) = ended  # in the same place on every rank
        if not phase:
            return sum(own)
        for rank in range(ranks):
            for other in range(ranks):
                moments[rank][other] = moments[other][other]


def run_in_parts(case, ranks, steps, fed=False, sums=None):
    """The steps as so many ranks do them, one after another in this process; their statistics.

    `sums`: what the last step is measured by, from there on.
    """
    memories = [case.memory() for _ in range(ranks)]
    states = [case.state, *([t.clone() for t in case.state] for _ in range(ranks - 1))]
    moments = rows_of_moments(case, ranks)
    rows = []
    for step in range(steps):
        row = torch.zeros(4)
        updates = case.d_steps + case.g_steps
        for update in range(updates):
            of_g = update >= case.d_steps
            last = sums if step + 1 == steps and update >= case.d_steps - 1 else None
            # Of D's last update its scores, of G's last the values of terms.
            parts = slice(14, None) if of_g else slice(6)
            measured = last is not None and (not of_g or update + 1 == updates)
            scores = [torch.full_like(sums, 7) if measured else None for _ in range(ranks)]
            total = gradients_of_ranks(case, memories, states, moments, scores, fed, step, update)
            if measured:
                last[parts] = sum(scores)[parts]
            if not of_g or update + 1 == updates:
                row = total[-4:] + (row if of_g else 0)
            for rank, (memory, state) in enumerate(zip(memories, states, strict=True)):
                measure = last if rank == 0 or last is None else last.clone()
                torch.ops.fastgan.fused_move(
                    case.plan, case.settings, state, memory, total.clone(), case.rates, update,
                    case.threads, measure, step,
                )  # fmt: skip
        rows.append(row)
    for state in states[1:]:
        torch.testing.assert_close(state, case.state, rtol=0, atol=0)
    return torch.stack(rows)


CASES = {
    "pair": {},
    "odd widths, masks, three updates of D": {"networks": DEEP, "latent": 7, "d_steps": 3},
    "critic with points between": {"loss": 4, "penalties": ((1, 0, 2, 10.0),), "d_steps": 2},
    "curved, at both": {"networks": DEEP, "penalties": ((0, 1, 1, 2.0), (0, 2, 3, 1.0))},
    "several updates of G": {"networks": DEEP, "g_steps": 3, "d_steps": 2},
    "a warming average, uniform latents": {"warmup": 0.4, "uniforms": ((1, 3, -2.0, 3.0),)},
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
    "batch norms": {"networks": plans.NORMED, "d_steps": 2, "g_steps": 2},
    "a batch norm in G, points between": {"networks": HALF_NORMED, "penalties": ((1, 0, 2, 10.0),)},
    "labels": {"parts": LABELS, "d_steps": 2, "g_steps": 2, "clips": (math.inf, 0.05)},
    "labels of the real batch": {"networks": DEEP, "parts": LABELS, "drawn": False, "d_steps": 3},
    "labels, points between": {"parts": LABELS, "penalties": ((1, 0, 1, 10.0), (0, 2, 1, 1.0))},
    "shared fakes": {"networks": DEEP, "d_steps": 2, "g_steps": 2, "shared_fakes": True},
    "shared fakes, batch norms": {
        "networks": plans.NORMED,
        "parts": LABELS,
        "d_steps": 2,
        "shared_fakes": True,
    },
    "shared fakes, points between": {
        "networks": DEEP,
        "penalties": ((1, 0, 1, 10.0), (0, 2, 1, 1.0)),
        "shared_fakes": True,
    },
    "numbers, batch norms": {"networks": plans.NORMED, "parts": NUMBERS, "g_steps": 2},
    "moments": {"networks": plans.HEADED, "heads": plans.HEADS, "terms": ((0, 2.0),)},
    "moments of a normed generator, what was asked for": {
        "networks": ([HALF_NORMED[0][0], plans.Layer(12, "none")], plans.HEADED[1]),
        "heads": ASKED,
        "parts": LABELS,
        "terms": ((1, 0.5), (0, 0.7)),
        "d_steps": 2,
        "g_steps": 2,
    },
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
    expected, found = torch.zeros(2, 14 + len(whole.terms), dtype=torch.float64)
    torch.ops.fastgan.fused_run(*whole.arguments(3), sums=expected)
    run_in_parts(parts, ranks, 3, sums=found)
    assert expected[6:14].reshape(2, 4)[:, :3].gt(0).all() and expected[9] == expected[13] == 0
    assert expected[14:].gt(0).all()
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-6, equal_nan=True)


def test_batch_norms_of_ranks_keep_to_rounded_products():
    whole, parts = (plans.Case(plans.NORMED, precision=1) for _ in range(2))
    torch.testing.assert_close(run_in_parts(parts, 3, 3), whole.run(3), rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("parts", [((), ()), LABELS])
def test_ranks_are_fed_their_rows_alone(parts):
    options = {"bytes": False, "parts": parts, "drawn": False, "d_steps": 2}
    fed, whole = plans.Case(**options), plans.Case(**options)
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


OF_NORMS = [
    ((0, None), "moments is None, and plan has a BatchNorm or a term of moments, which are"),
    ((0, torch.zeros(2, 48).double()), r"moments has shape \[2, 48\]; expected \[2, 160\]"),
    ((0, torch.zeros(2, 160)), "moments must be a contiguous tensor of float64"),
    ((1, torch.zeros(2, 160).double()), "phase is 1; expected 0, or where a part of this update"),
    ((-1, torch.zeros(2, 160).double()), "phase is -1"),
    ((1 << 40, torch.zeros(2, 160).double()), "phase is 1099511627776"),
]


@pytest.mark.parametrize(("more", "message"), OF_NORMS)
def test_a_bad_argument_of_batch_norms_is_an_error_that_names_it(more, message):
    networks = (plans.NORMED[0], [plans.Layer(40, norm=True), *plans.NORMED[1]])
    arguments = parts_of(plans.Case(networks))["gradients"]
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastgan.fused_gradients(*arguments, None, *more)


def test_no_moments_where_nobody_needs_them():
    arguments = parts_of(plans.Case())["gradients"]
    with pytest.raises(RuntimeError, match="moments is given, and nothing of plan needs"):
        torch.ops.fastgan.fused_gradients(*arguments, None, 0, torch.zeros(2, 48).double())


def with_entry(tensor, at, value):
    tensor = tensor.clone()
    tensor.view(-1)[at] = value
    return tensor


OF_CONDITIONS = [
    (0, lambda t: None, "condition is None, and plan has parts that are made of it"),
    (0, lambda t: t[1:], r"condition has shape \[19\]; expected one for each of 20 samples"),
    (0, lambda t: t.float(), r"condition has shape \[20\]; expected one"),
    (0, lambda t: with_entry(t, 7, 6), r"condition\[7\] is 6; expected a label of 0 to 5"),
    (0, lambda t: with_entry(t, 7, -1), r"condition\[7\] is -1; expected a label of 0 to 5"),
    (1, lambda t: t[:, :-1].contiguous(), "drawn has 8 elements; expected 16"),
    (1, lambda t: with_entry(t, 4, 20), r"drawn\[4\] is 20; expected the place of a condition"),
    (1, lambda t: with_entry(t, 12, -1), r"drawn\[12\] is -1; expected the place"),
]


@pytest.mark.parametrize(("at", "change", "message"), OF_CONDITIONS)
@pytest.mark.parametrize("of_g", [False, True])
def test_a_bad_condition_is_an_error_that_names_it(at, change, message, of_g):
    case = plans.Case(parts=LABELS)
    case.order[:] = torch.arange(20).repeat(4)
    case.places[:] = 19
    gradients = torch.zeros(case.numbers(0 if of_g else 1) + 4)
    shared = [case.plan, case.settings, case.state, case.memory(), case.images, case.order]
    # The second of two ranks, whose rows are 4 to 7.
    given = case.given(0, 1)
    given[at] = change(given[at])
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastgan.fused_gradients(
            *shared, gradients, 0, int(of_g), 1, 2, 1, None, 0, None, *given
        )


def test_conditions_of_a_plan_without_parts_are_an_error():
    arguments = parts_of(plans.Case())["gradients"]
    with pytest.raises(RuntimeError, match="plan has no use for it"):
        torch.ops.fastgan.fused_gradients(*arguments, None, 0, None, torch.zeros(20).long())


def test_gradients_and_what_they_are_made_of_lie_apart():
    arguments = parts_of(plans.Case())["gradients"]
    arguments[6] = arguments[3][: 4 * 131].view(torch.float32)
    with pytest.raises(RuntimeError, match="share memory"):
        torch.ops.fastgan.fused_gradients(*arguments)
