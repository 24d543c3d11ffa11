"""The operators of the fused engine, called without an engine on plans written by hand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import written_plans as plans
from native import emulator, fused_cuda

from fastgan import ops, random
from fastgan.engines.context import pass_number
from fastgan.engines.draws import PENALTY_STREAM
from fastgan.engines.fused import activations
from fastgan.engines.fused.chain import NORMS
from fastgan.engines.fused.heads import KINDS as HEADS
from fastgan.engines.fused.inputs import KINDS
from fastgan.random import Stream
from fastgan.statistics import STATISTICS, SUMS

pytestmark = pytest.mark.skipif(
    not ops.has_kernels(torch.device("cpu")), reason="the CPU library is not built"
)
PATHS = [str(Path(ops.__file__).resolve().parents[2]), str(Path(__file__).parent)]
PLAIN = ([plans.Layer(6), plans.Layer(12, "tanh")], [plans.Layer(9), plans.Layer(1, "none")])
"""Without what forward() of a Case leaves out."""


# --- What Python mirrors


def enums():
    lines = torch.ops.fastgan.fused_enums().splitlines()
    entries = {name: rest for name, *rest in map(str.split, lines)}
    return {
        name: {key: int(number) for key, number in (e.split("=") for e in rest)}
        for name, rest in entries.items()
    }


def test_streams_activations_and_precisions_are_those_of_python():
    found = enums()
    streams = {name: Stream[name] for name in ("LATENT_D", "LATENT_G", "DROPOUT", "CHOICE")}
    assert found["Stream"] == streams | {"PENALTY": PENALTY_STREAM}
    assert list(found["Activation"]) == list(plans.ACTIVATIONS)
    assert found["Precision"] == {"fp32": 0, "bf16": 1, "tf32": 2}
    assert list(found["PartOf"]) == list(KINDS)
    assert list(found["HeadOf"]) == list(HEADS)
    assert list(found["Norm"]) == ["no_norm", "batch_norm", "layer_norm"]
    assert [None, torch.nn.BatchNorm1d, torch.nn.LayerNorm] == [*NORMS]
    assert activations.ACTIVATIONS == plans.ACTIVATIONS
    counted = (
        "Activation", "Norm", "Loss", "Statistic", "Pass", "Penalty", "Place", "PartOf", "HeadOf",
    )  # fmt: skip
    for numbers in map(found.get, counted):
        assert list(numbers.values()) == list(range(len(numbers)))


def test_passes_are_those_of_python():
    passes = {  # of whose update, of D (0) or G, and the how many-th of them
        "D_ON_REAL": ("d", 0, 0), "D_ON_FAKE": ("d", 0, 1), "D_BETWEEN": ("d", 0, 2),
        "G_FOR_D": ("d", 1, 0), "D_FOR_G": ("g", 0, 0), "D_REAL_FOR_G": ("g", 0, 1),
        "G_FOR_G": ("g", 1, 0),
    }  # fmt: skip
    assert enums()["Pass"] == {name: pass_number(*of) for name, of in passes.items()}


def test_statistics_are_those_of_python():
    assert list(enums()["Statistic"]) == [s.name for s in STATISTICS]
    assert tuple(enums()["Sum"]) == SUMS


# --- Statistics


LOSSES = {
    0: lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(),
    2: lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(),
    3: lambda real, fake: ((real - 1) ** 2).mean() / 2 + (fake**2).mean() / 2,
    4: lambda real, fake: fake.mean() - real.mean(),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("d_steps", [1, 3])
def test_statistics_are_the_means_of_the_scores_of_the_last_update_of_d(loss, d_steps):
    # Without a learning rate every update of D sees the same weights, and another batch.
    case = plans.Case(PLAIN, loss=loss, d_steps=d_steps, lr=0.0)
    found = case.run(1)[0].double()
    last = d_steps - 1
    rows = case.order[: case.count][last * case.batch % 24 :][: case.batch]
    batch = len(rows)
    real = case.forward(1, case.images[rows] / 127.5 - 1)
    latents = case.latents(Stream.LATENT_D, last)[:batch]
    fake = case.forward(1, case.forward(0, latents))
    expected = [LOSSES[loss](real, fake), real.mean(), fake.mean()]
    torch.testing.assert_close(found[[0, 2, 3]], torch.stack(expected), atol=1e-6, rtol=1e-5)


# --- ELU


def score_of_tiny_weights(scale):
    """A case whose D sees its images through first weights of that size, and G's exact loss."""
    d = [plans.Layer(32, "elu", slope=1.0, bias=False), plans.Layer(1, "none", bias=False)]
    case = plans.Case((PLAIN[0], d), loss=4, batch=16, lr=0.0)
    case.values[1][0][0].mul_(scale)
    scores = case.forward(1, case.forward(0, case.latents(Stream.LATENT_G)))
    return case, -scores.mean().item(), scores.abs().mean().item()


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-6, 1e-8])
def test_elu_keeps_its_small_values(scale):
    case, exact, size = score_of_tiny_weights(scale)
    assert abs(case.run(1)[0, 1].item() - exact) < 5e-7 * size


needs_emulator = pytest.mark.skipif(
    emulator.why_not() is not None, reason=f"no emulator: {emulator.why_not()}"
)


def run_emulated(case, steps=1, persistent=False, **changes):
    """Statistics of fused_cuda_run; the tables and the memory may be replaced."""
    fused_cuda.load().device(4)
    size = torch.ops.fastgan.fused_cuda_memory(case.plan, case.settings, 1 + persistent)
    tables = {
        "memory": plans.aligned(size, 256).fill_(0xFF),
        "images": case.images,
        "order": case.order,
        "clock": torch.zeros(5, dtype=torch.int64),
        "rates": case.rates.repeat(steps, 1),
        "statistics": torch.full((steps, 4), 7.0),
        "stamps": None,
    } | changes
    torch.ops.fastgan.fused_cuda_run(
        case.plan, case.settings, case.state, *tables.values(), steps, False, persistent
    )
    return tables["statistics"]


@needs_emulator
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("scale", [1e-4, 1e-8])
def test_elu_keeps_its_small_values_on_cuda(scale, persistent):
    case, exact, size = score_of_tiny_weights(scale)
    found = run_emulated(case, persistent=persistent)[0, 1].item()
    assert abs(found - exact) < 5e-7 * size


@needs_emulator
@pytest.mark.parametrize("network", [plans.PAIR, plans.NORMED])
def test_statistics_on_cuda_are_those_of_the_cpu(network):
    found, expected = run_emulated(plans.Case(network), 3), plans.Case(network).run(3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@needs_emulator
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize(
    "clock",
    [
        [5, 0, 0, 0, 0],  # a step beyond the tables
        [0, 7, 0, 0, 0],  # before them
        [-(1 << 63), 0, 0, 0, 0],
        [(1 << 63) - 1, (1 << 63) - 2, -(1 << 63), 0, 0],
        [0, 0, 9, 1 << 62, -(1 << 62)],  # an order that is not there, counters of no meaning
        [0, 0, -9, 0, 0],
    ],
)
def test_a_clock_that_is_wrong_reads_and_writes_nothing_outside(clock, persistent):
    case = plans.Case()
    found = run_emulated(case, persistent=persistent, clock=torch.tensor(clock))
    row_is_there = clock[0] == 0 == clock[1]
    assert (found.isnan().any() if row_is_there else (found == 7).all()).item()
    assert case.values[1][0][0].isnan().any()  # and nobody overlooks it


@needs_emulator
def test_an_order_that_names_no_image_gives_nan_on_cuda():
    case = plans.Case()
    case.order[3] = 1 << 40
    assert run_emulated(case)[0, 2].isnan()


# --- bfloat16 everywhere


@pytest.mark.parametrize("name", ["images", "latents"])
def test_bf16_rounds_the_operands_of_products_and_nothing_else(name):
    case = plans.Case(PLAIN, precision=1, lr=0.0, batch=40, count=40)
    found = case.run(1)[0]
    if name == "images":
        exact = case.forward(1, case.images[case.order[:40]] / 127.5 - 1, rounded=True)
        assert found[2].item() == pytest.approx(exact.mean().item(), abs=1e-6)
        assert abs(case.forward(1, case.images / 127.5 - 1).mean() - found[2]) > 2e-6
    else:
        made = case.forward(0, case.latents(Stream.LATENT_D), rounded=True)
        assert found[3].item() == pytest.approx(
            case.forward(1, made, rounded=True).mean().item(), abs=1e-4
        )


PROGRAM = """
import sys
sys.path[:0] = sys.argv[1:]
import torch, written_plans as plans, fastgan
print(torch.ops.fastgan.fused_products("bf16"))
for network in (plans.PAIR, plans.NORMED):
    print(*plans.Case(network, precision=1, batch=40, count=100).run(3).flatten().tolist())
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_bf16_without_the_instructions_has_the_same_numbers(isa):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *PATHS],
        env={**os.environ, "FASTGAN_ISA": isa},
        capture_output=True,
        text=True,
    )
    if "FASTGAN_ISA is" in done.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert done.returncode == 0, done.stderr
    name, *rows = done.stdout.splitlines()
    assert name in (f"{isa}, bf16 operands emulated", "avx512_bf16")
    for row, network in zip(rows, (plans.PAIR, plans.NORMED), strict=True):
        expected = plans.Case(network, precision=1, batch=40, count=100).run(3)
        found = torch.tensor([float(x) for x in row.split()]).view(3, 4)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
        # Where no weight has changed yet, rounding has had no chance to fall the other way.
        torch.testing.assert_close(found[0], expected[0], atol=2e-5, rtol=2e-5)


def test_products_of_an_unknown_precision_are_an_error():
    with pytest.raises(RuntimeError, match="precision is 'fp16'; expected 'fp32' or 'bf16'"):
        torch.ops.fastgan.fused_products("fp16")


# --- Arguments


def replaced(i, change):
    def bad(arguments):
        arguments[i] = change(arguments[i])

    return bad


def with_integer(at, value):
    return replaced(0, lambda plan: plan.index_fill(0, torch.tensor(at), value))


def with_real(at, value):
    return replaced(1, lambda reals: reals.index_fill(0, torch.tensor(at), value))


def share(a, b):
    def bad(arguments):
        arguments[2][a] = arguments[2][b]

    return bad


def order_in_memory(arguments):
    arguments[5] = arguments[3][: arguments[5].numel() * 8].view(torch.int64)


def order_of(entry):
    def bad(arguments):
        arguments[5] = arguments[5].clone()
        arguments[5][2] = entry

    return bad


def state_like(change, i=8):
    def bad(arguments):
        arguments[2][i] = change(arguments[2][i])

    return bad


BAD = [
    (replaced(0, torch.ones_like), r"plan\[13\], layers before a join, is 1; expected 0 to 0"),
    (replaced(0, lambda t: t[:-1]), "plan is too short: it ends before"),
    (replaced(0, lambda t: torch.cat([t, t[:1]])), "longer than the networks"),
    (replaced(0, lambda t: t.int()), "plan must be a contiguous vector of int64"),
    (replaced(1, lambda t: t[:-1]), "settings is too short"),
    (with_integer(2, 0), r"plan\[2\], batch_size, is 0; expected 1 to"),
    (with_integer(2, 1 << 40), r"plan\[2\], batch_size"),
    (with_integer(2, 1 << 24), "memory has"),
    (with_integer(3, -1), r"plan\[3\], d_steps"),
    (with_integer(4, 5), r"plan\[4\], loss, is 5; expected 0 to 4"),
    (with_integer(6, 1 << 62), r"plan\[6\], images"),
    (with_integer(7, 2), r"plan\[7\], precision"),
    (with_integer(8, 9), r"plan\[8\], an optimizer's rule, is 9; expected 0 to 3"),
    (with_integer(9, 1 << 40), r"plan\[9\], step counters"),
    (with_integer(15, -1), r"plan\[15\], joins, is -1; expected 0 to 1024"),
    (with_integer(17, 1 << 62), r"plan\[17\], features"),
    (with_integer(21, 1 << 20), r"plan\[21\], dropout's threshold"),
    (with_integer(22, -1), r"plan\[22\], dropout's number"),
    (with_integer(23, 1 << 50), r"plan\[23\], weight, is"),
    (with_real(0, float("nan")), "real label is nan in settings"),
    (with_real(2, 1.0), "beta is 1"),
    (with_real(3, -0.5), "beta2 is -0.5"),
    (with_real(4, float("inf")), "eps is inf"),
    (share(8, 4), r"state\[8\], a bias, must be a contiguous float32 tensor of 6 elements"),
    (share(5, 4), r"state\[[45]\] and state\[[45]\] share memory"),
    (state_like(torch.Tensor.double), r"state\[8\], a \w+, must be a contiguous float32"),
    (state_like(torch.Tensor.t, 4), r"state\[4\], a weight, must be a contiguous"),
    (replaced(2, lambda state: state[:-1]), "; expected -1 to"),
    (state_like(lambda t: t - 1, 0), "different numbers of steps"),
    (state_like(lambda t: t * float("nan"), 0), "different numbers of steps"),
    (replaced(3, lambda t: t[:-64]), "memory has .* bytes; expected"),
    (replaced(3, lambda t: torch.cat([t, t])[8 : len(t) + 8]), "multiple of 64 bytes"),
    (replaced(3, lambda t: None), "memory is None"),
    (replaced(4, lambda t: t[:-1]), "images has 228 elements; expected 240"),
    (replaced(4, torch.Tensor.double), "images must be uint8 or float32"),
    (replaced(5, lambda t: t[:19]), "order has 19 elements; expected 20"),
    (replaced(5, torch.Tensor.int), "order must be a contiguous tensor of int64"),
    (replaced(5, lambda t: None), "images fed without an order must be float32"),
    (order_of(20), "order names an image outside 0 to 19"),
    (order_of(-1), "order names an image outside"),
    (order_in_memory, "memory and order share memory|order and memory share memory"),
    (replaced(6, lambda t: t[:1]), r"rates has shape \[1\]; expected \[2\] or \[steps, 2\]"),
    (replaced(7, lambda t: t[:, :2]), "statistics"),
    (replaced(7, lambda t: torch.zeros(2, 2)), r"statistics has shape \[2, 2\]"),
    (replaced(8, lambda t: torch.zeros(3, 2).double()), "profile has shape"),
    (replaced(9, lambda n: -1), "first_step is -1; expected 0 or more"),
    (replaced(9, lambda n: (1 << 63) - 1), "first_step"),
    (replaced(10, lambda n: 0), "threads is 0; expected 1 to"),
    (replaced(10, lambda n: 1 << 40), "threads is"),
    (
        lambda a: a.extend([None, None, torch.zeros(13).double()]),
        r"sums has shape \[13\]; expected \[14\]",
    ),
    (
        lambda a: a.extend([None, None, torch.zeros(14)]),
        "sums must be a contiguous tensor of float64",
    ),
    (
        lambda a: a.extend([None, None, a[3][:112].view(torch.float64)]),
        "(memory|sums) share memory",
    ),
]


def test_the_places_that_the_list_above_speaks_of():
    case = plans.Case()
    assert case.integers[9:14] == [4, 0, 1, 2, 3] and case.integers[14] == 2
    assert case.integers[15:17] == [0, 0]
    assert case.integers[17:23] == [6, 1, 0, 0, 0, 0] and case.integers[23:26] == [4, 5, 6]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_a_bad_argument_is_an_error_that_names_it(bad, message):
    case = plans.Case()
    arguments = case.arguments(2)
    bad(arguments)
    before = [t.clone() for t in case.state]
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastgan.fused_run(*arguments)
    torch.testing.assert_close(case.state, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("network", [plans.PAIR, plans.NORMED])
def test_a_batch_of_one_image_has_no_variance(network):
    case = plans.Case(network, batch=8, count=17)
    if network is plans.PAIR:
        assert case.run(1).isfinite().all()
        return
    with pytest.raises(RuntimeError, match="BatchNorm and a batch of 1 image"):
        case.arguments(1)


@pytest.mark.parametrize("runs", [0, 1, 3])
def test_threads_that_are_woken_in_vain_or_twice_change_nothing(runs):
    woken, plain = plans.Case(threads=3), plans.Case(threads=3)
    for _ in range(runs):
        torch.ops.fastgan.fused_wake(3)
        torch.ops.fastgan.fused_wake(5)
        woken.run(2)
    torch.ops.fastgan.fused_wake(2)
    for _ in range(runs):
        plain.run(2)
    torch.testing.assert_close(woken.state, plain.state, rtol=0, atol=0)
    for threads in (0, -1, 4097):
        with pytest.raises(RuntimeError, match=f"threads is {threads}; expected 1 to 4096"):
            torch.ops.fastgan.fused_wake(threads)


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1e300])
def test_any_learning_rate_is_carried_out(rate):
    case = plans.Case(plans.NORMED, lr=rate)
    case.run(2)
    assert not case.values[0][0][0].isfinite().all()


def test_many_updates_of_d_do_not_overflow():
    case = plans.Case(d_steps=1 << 20)
    with pytest.raises(RuntimeError, match="order has 80 elements"):
        torch.ops.fastgan.fused_run(*case.arguments(1, first_step=1 << 40))
    assert torch.ops.fastgan.fused_phases(case.plan, case.settings).startswith("0 inputs")


@needs_emulator
def test_the_length_of_a_long_step_is_counted_at_once():
    fused_cuda.load()
    lengths = [
        torch.ops.fastgan.fused_cuda_length(
            *(lambda c: (c.plan, c.settings))(plans.Case(d_steps=n))
        )
        for n in (1, 2, 1 << 20)
    ]
    each = lengths[1] - lengths[0]
    assert each > 3 and lengths[2] == lengths[0] + each * ((1 << 20) - 1)


def test_order_is_checked_only_where_the_steps_read_it():
    # An engine keeps permutations of whole epochs in a table of which a call needs a part.
    case = plans.Case()
    case.order[20:] = -7
    assert case.run(2).isfinite().all()
    assert random.permutation(3, 0, 20).max() == 19
