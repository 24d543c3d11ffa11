"""The fused engine against the eager one, against float64, and against itself."""

import copy
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch
from torch import nn

from fastgan import data, losses, ops, optim
from fastgan.engines import Problem, choose
from fastgan.engines.eager import EagerEngine
from fastgan.engines.fused import FusedEngine
from fastgan.models import Discriminator, Generator

pytestmark = pytest.mark.skipif(
    not ops.has_kernels(torch.device("cpu")), reason="the CPU library is not built"
)
ROOT = Path(__file__).parents[1]
# For child processes: the fastgan under test, which need not be the checkout's, and this file.
PATHS = [str(Path(ops.__file__).resolve().parents[1]), str(Path(__file__).parent)]


@pytest.fixture(autouse=True)
def two_threads():
    """More threads than cores would make torch's own wait for each other without end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def eager_run(engine, n):
    torch.set_num_threads(1)
    try:
        return engine.run(n)
    finally:
        torch.set_num_threads(2)


def mlp(*parts):
    return nn.Sequential(nn.Flatten(), *parts)


def reference_pair():
    return Generator(), Discriminator()


def deep_normed():
    g = mlp(
        nn.Linear(20, 48, bias=False),
        nn.BatchNorm1d(48),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(48, 70),
        nn.BatchNorm1d(70, momentum=None),
        nn.ELU(0.7),
        nn.Linear(70, 75),
        nn.Tanh(),
        nn.Unflatten(1, (3, 5, 5)),
    )
    d = mlp(
        nn.Linear(75, 50),
        nn.LeakyReLU(0.3),
        nn.Dropout(0.4),
        nn.Linear(50, 33),
        nn.BatchNorm1d(33),
        nn.Tanh(),
        nn.Dropout(0.2),
        nn.Linear(33, 17),
        nn.Sigmoid(),
        nn.Linear(17, 1),
    )
    return g, d


def plain():
    return (
        mlp(nn.Linear(7, 30), nn.LeakyReLU(0.1), nn.Linear(30, 36), nn.Unflatten(1, (1, 6, 6))),
        mlp(nn.Linear(36, 40), nn.ReLU(), nn.Linear(40, 1), nn.Flatten(0, 1)),
    )


def critic():
    # The last bias has no gradient but rounding, which Adam makes as large as any other.
    g, d = plain()
    d[3] = nn.Linear(40, 1, bias=False)
    return g, d


def single_layers():
    return (
        mlp(nn.Linear(5, 12), nn.Sigmoid(), nn.Unflatten(1, (3, 2, 2))),
        mlp(nn.Linear(12, 1, bias=False), nn.Sigmoid()),
    )


def plain_norm():
    g = mlp(
        nn.Linear(16, 64),
        nn.BatchNorm1d(64, affine=False),
        nn.LeakyReLU(0.2),
        nn.Linear(64, 49),
        nn.Tanh(),
        nn.Unflatten(1, (1, 7, 7)),
    )
    d = mlp(
        nn.Linear(49, 64),
        nn.BatchNorm1d(64, track_running_stats=False),
        nn.LeakyReLU(0.2),
        nn.Linear(64, 64),
        nn.LeakyReLU(0.2),
        nn.Linear(64, 1),
    )
    return g, d


# name: networks, latent, image, and what differs from the defaults
PLANS = {
    "reference": (reference_pair, 100, (1, 28, 28), {"game": "non-saturating"}),
    "reference, ragged": (
        reference_pair,
        100,
        (1, 28, 28),
        {"count": 101, "batch": 33, "game": "minimax"},
    ),
    "deep": (
        deep_normed,
        20,
        (3, 5, 5),
        {"count": 130, "batch": 40, "d_steps": 2, "smoothing": 0.1},
    ),
    "hinge": (
        plain,
        7,
        (1, 6, 6),
        {"game": "hinge", "count": 50, "batch": 16, "weight_decay": 0.05},
    ),
    "least squares": (
        plain,
        7,
        (1, 6, 6),
        {"game": "least-squares", "kind": torch.optim.AdamW, "weight_decay": 0.1},
    ),
    "wasserstein": (
        critic,
        7,
        (1, 6, 6),
        {"game": "wasserstein", "d_steps": 3, "batch": 100, "count": 256},
    ),
    "single layers": (single_layers, 5, (3, 2, 2), {"batch": 3, "count": 20}),
    "norms": (
        plain_norm,
        16,
        (1, 7, 7),
        {"batch": 64, "kind": optim.AdamW, "game": "minimax", "smoothing": 0.2},
    ),
    "floats": (plain, 7, (1, 6, 6), {"floats": True}),
}


def problem(name="reference", *, double=False, **changes):
    make, latent, image, options = PLANS[name]
    options = {
        "count": 128,
        "batch": 32,
        "d_steps": 1,
        "game": "non-saturating",
        "smoothing": 0.0,
        "kind": torch.optim.Adam,
        "weight_decay": 0.0,
        "floats": False,
        "lr": 2e-4,
        "draw": 1,
        "precision": "fp32",
        **options,
        **changes,
    }
    torch.manual_seed(options["draw"])
    g, d = make()
    if double:
        g, d = g.double(), d.double()
    pixels = torch.randint(0, 256, (options["count"], *image), dtype=torch.uint8)
    if options["floats"]:
        pixels = pixels.float() * (2 / 255) - 1
    settings = {"lr": options["lr"], "betas": (0.5, 0.99), "weight_decay": options["weight_decay"]}
    return Problem(
        g,
        d,
        losses.game(options["game"], options["smoothing"]),
        options["kind"](g.parameters(), **settings),
        options["kind"](d.parameters(), **settings),
        data.open(pixels),
        options["batch"],
        latent,
        d_steps=options["d_steps"],
        seed=2**63 + 5,
        ema=copy.deepcopy(g),
        ema_decay=0.9,
        lr_schedule=options.get("schedule"),
        precision=options["precision"],
    )


def tensors(p):
    """Everything a step changes, by name."""
    found = {}
    for name, net in (("g", p.generator), ("d", p.discriminator), ("ema", p.ema)):
        found |= {f"{name}.{key}": value for key, value in net.state_dict().items()}
    for name, net, opt in (
        ("g", p.generator, p.optimizer_g),
        ("d", p.discriminator, p.optimizer_d),
    ):
        for key, w in net.named_parameters():
            found |= {f"{name}.{key}.{k}": v for k, v in opt.state[w].items()}
    return found


def same(p, q):
    a, b = tensors(p), tensors(q)
    assert a.keys() == b.keys()
    return [key for key in a if not torch.equal(a[key], b[key])]


def biases_before_norm(net):
    """Their gradient is rounding alone, which Adam makes as large as any other."""
    names = dict(net.named_modules())
    order = list(names)
    return {
        f"{a}.bias"
        for a, b in zip(order, order[1:], strict=False)
        if isinstance(names[a], nn.Linear) and isinstance(names[b], nn.BatchNorm1d)
    }


@pytest.mark.parametrize("name", PLANS)
def test_losses_follow_eager_for_50_steps(name):
    fused, eager = FusedEngine(problem(name)), EagerEngine(problem(name))
    got, expected = fused.run(50), eager_run(eager, 50)
    assert (fused.step, eager.step) == (50, 50)
    # relative to the size of what a loss is the difference of
    assert ((got - expected).abs() / expected.abs().clamp(min=0.1)).max() < 1e-4
    a, b = tensors(fused.problem), tensors(eager.problem)
    for key, value in a.items():
        if "num_batches" in key or key.endswith(".step"):
            assert torch.equal(value, b[key]), key


@pytest.mark.parametrize("name", PLANS)
def test_updates_are_as_good_as_torch_in_float32(name):
    # The median of five draws: in one an activation may round to the other side of its kink.
    ratios = defaultdict(list)
    for draw in range(1, 6):
        fused, eager = problem(name, draw=draw), problem(name, draw=draw)
        exact = problem(name, draw=draw, double=True)
        steps = 3
        FusedEngine(fused).run(steps)
        eager_run(EagerEngine(eager), steps)
        eager_run(EagerEngine(exact), steps)
        skip = {
            f"{short}.{key}.{state}"
            for short, net in (("g", fused.generator), ("d", fused.discriminator))
            for key in biases_before_norm(net)
            for state in ("exp_avg", "exp_avg_sq")
        }
        got, expected = tensors(fused), tensors(eager)
        ours, torchs = Counter(), Counter()
        for key, value in tensors(exact).items():
            if not key.endswith(("exp_avg", "exp_avg_sq")) or key in skip:
                continue
            kind = key[0], key.rsplit(".")[-1]
            ours[kind] += (got[key].double() - value).square().sum().item()
            torchs[kind] += (expected[key].double() - value).square().sum().item()
        for kind, error in ours.items():
            ratios[kind].append((error / torchs[kind]) ** 0.5)
    for kind, found in ratios.items():
        assert sorted(found)[2] <= 3, (kind, found)


@pytest.mark.parametrize("name", ["reference, ragged", "deep", "norms"])
def test_threads_change_no_bit(name):
    results = []
    for n in (1, 2, 3, 7):
        torch.set_num_threads(n)
        p = problem(name)
        losses_of = FusedEngine(p).run(9)
        results.append((losses_of, p))
    for other, p in results[1:]:
        assert torch.equal(results[0][0], other)
        assert same(results[0][1], p) == []


@pytest.mark.parametrize("name", ["reference, ragged", "deep"])
def test_one_call_or_many(name):
    p, q = problem(name), problem(name)
    whole, parts = FusedEngine(p), FusedEngine(q)
    expected = whole.run(13)
    got = torch.cat([parts.run(n) for n in (1, 1, 5, 0, 6)])
    assert torch.equal(got, expected)
    assert same(p, q) == []


@pytest.mark.parametrize(
    "name", ["reference", "reference, ragged", "deep", "norms", "single layers"]
)
def test_bf16_is_as_good_as_autocast(name):
    ours, torchs = Counter(), Counter()
    for draw in (1, 2, 3):
        fused, eager = (problem(name, draw=draw, precision="bf16") for _ in range(2))
        exact = problem(name, draw=draw, double=True)
        FusedEngine(fused).run(3)
        eager_run(EagerEngine(eager), 3)
        eager_run(EagerEngine(exact), 3)
        skip = biases_before_norm(fused.generator) | biases_before_norm(fused.discriminator)
        got, expected = tensors(fused), tensors(eager)
        for key, value in tensors(exact).items():
            if key.endswith("exp_avg") and key[2:].removesuffix(".exp_avg") not in skip:
                ours[key[0]] += (got[key].double() - value).square().sum().item()
                torchs[key[0]] += (expected[key].double() - value).square().sum().item()
    assert ours["g"] ** 0.5 < 1.5 * torchs["g"] ** 0.5
    assert ours["d"] ** 0.5 < 1.5 * torchs["d"] ** 0.5


@pytest.mark.parametrize("name", ["reference, ragged", "deep", "norms"])
def test_bf16_bits_do_not_depend_on_threads_or_calls(name):
    runs = []
    for threads, parts in ((1, [8]), (2, [1, 2, 5]), (3, [8])):
        torch.set_num_threads(threads)
        p = problem(name, precision="bf16")
        engine = FusedEngine(p)
        runs.append((torch.cat([engine.run(n) for n in parts]), p))
    for losses_of, p in runs[1:]:
        assert torch.equal(runs[0][0], losses_of)
        assert same(runs[0][1], p) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.data.mul_(0.5),
        lambda w: setattr(w, "data", w.data * 0.5),
        lambda w: w.requires_grad_(False).mul_(0.5).requires_grad_(True),
        lambda w: w.data[3, 5].add_(1.0),
    ],
)
def test_bf16_sees_changed_weights(change):
    p, q = (problem("reference", precision="bf16") for _ in range(2))
    a = FusedEngine(p)
    a.run(2)
    FusedEngine(q).run(2)
    change(p.discriminator.model[0].weight)
    change(q.discriminator.model[0].weight)
    b = FusedEngine(q)
    b.step = 2
    assert torch.equal(a.run(2), b.run(2))


def test_resume_from_a_copy():
    p = problem("deep")
    engine = FusedEngine(p)
    engine.run(6)
    q = copy.deepcopy(p)
    other = FusedEngine(q)
    other.step = engine.step
    assert torch.equal(engine.run(7), other.run(7))
    assert same(p, q) == []


def test_many_short_epochs_in_one_call(monkeypatch):
    monkeypatch.setattr("fastgan.engines.fused._KEPT_ORDER", 250)
    p, q = (problem("deep", count=100, batch=64, d_steps=3) for _ in range(2))
    got, expected = FusedEngine(p).run(11), eager_run(EagerEngine(q), 11)
    assert (got - expected).abs().max() < 1e-4


class Seen(torch.utils.data.Dataset):
    def __init__(self, pixels):
        self.pixels = pixels

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, i):
        return self.pixels[i]


def test_images_that_are_not_in_memory():
    p, q = problem("deep"), problem("deep")
    q.data = data.open(Seen(q.data.pixels), budget_bytes=0)
    assert not q.data.resident
    try:
        expected, got = FusedEngine(p).run(5), FusedEngine(q).run(5)
    finally:
        q.data.close()
    # bytes are mapped with one rounding less inside the engine
    assert (got - expected).abs().max() < 1e-5


def test_the_user_may_change_weights_rates_and_options_between_runs():
    p, q = problem("deep"), problem("deep")
    fused, eager = FusedEngine(p), EagerEngine(q)
    for engine in (fused, eager):
        r = engine.problem
        eager_run(engine, 2)
        with torch.no_grad():
            r.generator[1].weight.mul_(0.5)
            r.discriminator[1].weight.data = r.discriminator[1].weight.data * 1.5
        r.optimizer_g.param_groups[0]["lr"] = 1e-2
        r.optimizer_d.param_groups[0]["betas"] = (0.9, 0.999)
        r.discriminator[3].p = 0.1
        r.optimizer_d.load_state_dict(copy.deepcopy(r.optimizer_d.state_dict()))
    got, expected = fused.run(3), eager_run(eager, 3)
    assert (got - expected).abs().max() < 1e-4
    p.discriminator[3].eval()
    q.discriminator[3].eval()
    assert (fused.run(2) - eager_run(eager, 2)).abs().max() < 1e-4
    p.discriminator.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="hooks"):
        FusedEngine(p)


def first_moment(p):
    return p.optimizer_d.state[p.discriminator.model[0].weight]


def first_weight(p):
    return p.generator.fc[0].weight


def swap_storage(t):
    t.data = t.data.clone()


CHANGES = {
    "a weight's memory": lambda p: swap_storage(p.generator.fc[0].weight),
    "a moment's memory": lambda p: swap_storage(
        p.optimizer_d.state[p.discriminator.model[0].weight]["exp_avg"]
    ),
    "a moment moved to shared memory": lambda p: p.optimizer_g.state[p.generator.fc[0].weight][
        "exp_avg_sq"
    ].share_memory_(),
    "a step counter's memory": lambda p: swap_storage(
        p.optimizer_d.state[p.discriminator.model[0].bias]["step"]
    ),
    "a moment": lambda p: p.optimizer_d.state[p.discriminator.model[0].weight].update(
        exp_avg=torch.full((256, 784), 1e-3)
    ),
    "an optimiser's whole state": lambda p: p.optimizer_g.load_state_dict(
        copy.deepcopy(p.optimizer_g.state_dict())
    ),
    "a parameter's state": lambda p: p.optimizer_g.state.update(
        {p.generator.fc[0].bias: copy.deepcopy(p.optimizer_g.state[p.generator.fc[0].bias])}
    ),
    "a weight": lambda p: p.discriminator.model[0].weight.data.mul_(0.5),
    "a parameter": lambda p: setattr(
        p.ema.fc[0], "bias", nn.Parameter(torch.ones(256), requires_grad=False)
    ),
    "the order": lambda p: setattr(p, "seed", 77),
    "the batch size": lambda p: setattr(p, "batch_size", 17),
    "d_steps": lambda p: setattr(p, "d_steps", 2),
    "the decay of the average": lambda p: setattr(p, "ema_decay", 0.5),
    "the game": lambda p: setattr(p, "game", losses.GAMES["minimax"]),
    "betas": lambda p: p.optimizer_g.param_groups[0].update(betas=(0.8, 0.9)),
    "the learning rate": lambda p: p.optimizer_g.param_groups[0].update(lr=1e-2),
    "a schedule": lambda p: setattr(p, "lr_schedule", lambda t: 0.1),
    "dropout": lambda p: setattr(p.discriminator.model[2], "p", 0.6),
    "evaluation": lambda p: p.discriminator.eval(),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("steps", [1, 3])
def test_every_change_between_two_runs_is_noticed(what, steps):
    p, q = problem("reference"), problem("reference")
    engine, other = FusedEngine(p), FusedEngine(q)
    engine.run(steps)
    other.run(steps)
    CHANGES[what](p)
    CHANGES[what](q)
    fresh = FusedEngine(q)
    fresh.step = other.step
    assert torch.equal(engine.run(steps), fresh.run(steps))
    assert same(p, q) == []


@pytest.mark.parametrize(
    ("change", "back", "reason"),
    [
        (
            lambda p: p.generator.fc[0].weight.requires_grad_(False),
            lambda p, *_: p.generator.fc[0].weight.requires_grad_(True),
            "requires_grad",
        ),
        (
            lambda p: p.optimizer_g.param_groups[0].update(amsgrad=True),
            lambda p, *_: p.optimizer_g.param_groups[0].update(amsgrad=False),
            "amsgrad=True",
        ),
        (
            lambda p: setattr(p, "discriminator", nn.Sequential(nn.Flatten(), nn.GELU())),
            lambda p, q, d: setattr(p, "discriminator", d),
            "GELU",
        ),
        (
            lambda p: setattr(p.generator.fc[0].weight, "data", torch.zeros(100, 256).t()),
            lambda p, q, _: setattr(
                p.generator.fc[0].weight, "data", q.generator.fc[0].weight.data
            ),
            "contiguous",
        ),
        (
            lambda p: first_moment(p).update(exp_avg=torch.zeros(784, 256).t()),
            lambda p, q, _: first_moment(p).update(exp_avg=first_moment(q)["exp_avg"]),
            "contiguous",
        ),
    ],
)
def test_a_change_that_has_no_plan_is_an_error_each_time(change, back, reason):
    p = problem("reference")
    engine = FusedEngine(p)
    engine.run(1)
    q, d = copy.deepcopy(p), p.discriminator
    change(p)
    for _ in range(2):
        with pytest.raises((ValueError, RuntimeError), match=reason):
            engine.run(1)
    back(p, q, d)
    expected = copy.deepcopy(p)
    other = FusedEngine(expected)
    other.step = 1
    assert torch.equal(engine.run(2), other.run(2))
    assert same(p, expected) == []


def test_a_schedule_or_a_dataset_may_change_a_weight():
    class Changing(Seen):
        def __getitem__(self, i):
            swap_storage(p.generator.fc[0].weight)
            return super().__getitem__(i)

    def schedule(t):
        swap_storage(p.discriminator.model[0].weight)
        return 1.0

    p, q = problem("reference"), problem("reference")
    p.data = data.open(Changing(p.data.pixels), budget_bytes=0)
    p.lr_schedule = schedule
    try:
        got = FusedEngine(p).run(3)
    finally:
        p.data.close()
    assert (got - FusedEngine(q).run(3)).abs().max() < 1e-5
    assert all(w.isfinite().all() for w in p.generator.parameters())
    assert (p.generator.fc[0].weight - q.generator.fc[0].weight).abs().max() < 1e-4


def test_parameter_groups_must_stay_alike():
    p = problem("reference")
    weights, biases = p.generator.parameters(), []
    weights = [w for w in weights if w.dim() > 1 or biases.append(w)]
    groups = [{"params": weights}, {"params": biases}]
    p.optimizer_g = torch.optim.Adam(groups, lr=2e-4, betas=(0.5, 0.99))
    q = problem("reference")
    engine = FusedEngine(p)
    assert torch.equal(engine.run(2), FusedEngine(q).run(2))
    for option, value in (("lr", 1e-3), ("eps", 1e-6)):
        before = p.optimizer_g.param_groups[1][option]
        p.optimizer_g.param_groups[1][option] = value
        with pytest.raises(
            ValueError, match=f"optimizer_g: parameter groups that differ in {option}"
        ):
            engine.run(1)
        p.optimizer_g.param_groups[1][option] = before
    assert engine.run(1).isfinite().all() and engine.step == 3


def test_learning_rate_schedule():
    schedule = [1.0, 0.5, 0.0, 2.0, 0.1].__getitem__
    p, q = (problem("hinge", schedule=schedule) for _ in range(2))
    got, expected = FusedEngine(p).run(5), eager_run(EagerEngine(q), 5)
    assert (got - expected).abs().max() < 1e-5
    assert p.optimizer_g.param_groups[0]["lr"] == 2e-4
    p.lr_schedule = lambda t: float("nan")
    with pytest.raises(ValueError, match="lr_schedule"):
        FusedEngine(p).run(1)


def test_the_average_is_the_average_of_the_steps():
    p = problem("reference")
    engine = FusedEngine(p)
    weight, average = p.generator.fc[0].weight, p.ema.fc[0].weight
    expected = average.detach().double()
    for _ in range(4):
        engine.run(1)
        expected = 0.9 * expected + 0.1 * weight.detach().double()
    assert (average - expected).abs().max() < 1e-6


def test_no_average():
    p, q = problem("deep"), problem("deep")
    p.ema = None
    assert torch.equal(FusedEngine(p).run(4), FusedEngine(q).run(4))


def test_autograd_notices_the_change():
    p = problem("reference")
    out = p.generator(torch.randn(2, 100)).sum()
    FusedEngine(p).run(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_choice_and_description():
    engine, said = choose(problem("reference"))
    assert isinstance(engine, FusedEngine)
    assert "G 100-256-784, D 784-256-1" in said
    assert engine.memory_bytes() > 2**20
    engine.run(1)
    engine.close()
    assert engine.run(1).isfinite().all()


def test_profile_covers_the_step():
    p = problem("deep", d_steps=1)
    engine = FusedEngine(p)
    phases = engine.profile(3)
    assert engine.step == 3
    assert len({name for name, *_ in phases}) == len(phases)
    assert all(work > 0 and wait >= 0 for _, _, work, wait in phases)
    weights = [
        sum(m.weight.numel() for m in n.modules() if isinstance(m, nn.Linear))
        for n in (p.generator, p.discriminator)
    ]
    # forward, backward and update of D on two batches and of G on one, and all else the plan needs
    assert sum(flops for _, flops, *_ in phases) > 2 * p.batch_size * (
        3 * weights[0] + 5 * weights[1]
    )
    assert torch.equal(
        FusedEngine(problem("deep", d_steps=1)).run(3)[-1], torch.stack([*problem_losses(3)])[-1]
    )


def problem_losses(n):
    return FusedEngine(problem("deep", d_steps=1)).run(n)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda p: setattr(p, "generator", nn.Sequential(nn.Conv2d(3, 3, 1))),
            "generator.0: Conv2d has no fused form",
        ),
        (lambda p: setattr(p, "device", torch.device("meta")), "device is meta"),
        (
            lambda p: setattr(p, "game", losses.Game("mine", None, None)),
            "game 'mine' has no fused form",
        ),
        (lambda p: setattr(p, "game", losses.Game("hinge", abs, abs)), "losses of its own"),
        (
            lambda p: setattr(p, "optimizer_g", torch.optim.SGD(p.generator.parameters(), 0.1)),
            "SGD has no fused form",
        ),
        (lambda p: p.optimizer_d.param_groups[0].update(amsgrad=True), "amsgrad=True"),
        (lambda p: p.optimizer_d.register_step_post_hook(lambda *_: None), "step hooks"),
        (
            lambda p: setattr(
                p, "optimizer_d", torch.optim.Adam([*p.discriminator.parameters()][:1])
            ),
            "does not train all",
        ),
        (lambda p: setattr(p, "ema", nn.Linear(2, 2)), "ema: is not a"),
        (lambda p: p.discriminator.append(nn.Dropout(0.5)), "Dropout on the logits"),
        (lambda p: setattr(p, "batch_size", 127), "last batch of 1 image"),
    ],
)
def test_reasons(change, reason):
    p = problem("norms")
    assert FusedEngine.unsupported(p) is None
    change(p)
    assert reason in FusedEngine.unsupported(p)
    with pytest.raises(ValueError):
        FusedEngine(p)


def test_several_python_threads():
    expected = FusedEngine(problem("deep")).run(6)
    got = [None] * 3

    def work(i):
        got[i] = FusedEngine(problem_in_thread[i]).run(6)

    problem_in_thread = [problem("deep") for _ in got]
    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(torch.equal(expected, x) for x in got)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_trains_too():
    engine = FusedEngine(problem("reference"))
    engine.run(1)
    expected = FusedEngine(copy.deepcopy(engine.problem))
    expected.step = 1
    expected = expected.run(3)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if torch.equal(engine.run(3), expected) else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    # the child worked on its own copy of the memory
    assert torch.equal(engine.run(3), expected)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "amx"])
def test_every_instruction_set(isa):
    program = (
        "import sys, torch; sys.path[:0] = sys.argv[1:]\n"
        "from fastgan import ops\n"
        "try: name = ops.isa()\n"
        "except RuntimeError as error: print('missing', error); sys.exit()\n"
        "from test_fused import FusedEngine, problem\n"
        "runs = [FusedEngine(problem(n)).run(20) for n in ('reference, ragged', 'deep', 'norms')]\n"
        "print(name, *(f'{x:.9g}' for x in torch.cat(runs).flatten().tolist()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *PATHS],
        env={**os.environ, "FASTGAN_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    name, *values = done.stdout.split()
    if name == "missing":
        pytest.skip(f"this processor has no {isa}")
    assert name == isa
    expected = torch.cat(
        [FusedEngine(problem(n)).run(20) for n in ("reference, ragged", "deep", "norms")]
    )
    got = torch.tensor([float(x) for x in values])
    assert (got - expected.flatten()).abs().max() < 1e-4


SOURCES = ["step/phases.cpp", "cpu/step/*.cpp", "cpu/team.cpp", "cpu/isa.cpp", "cpu/kernels*.cpp"]


def build_driver(compiler, out, *flags):
    """tests/native/step_main.cpp and the torch-free half of csrc/cpu as a program of their own."""
    files = [f for pattern in SOURCES for f in sorted((ROOT / "csrc").glob(pattern))]
    files = [str(f) for f in files if f.name != "operators.cpp"]
    command = [
        compiler,
        "-std=c++20",
        "-Icsrc",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-pthread",
        "-Wno-psabi",
        *flags,
        "tests/native/step_main.cpp",
        *files,
        "-o",
        str(out),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
def test_native_driver_against_a_plain_step_in_double(tmp_path):
    build_driver("g++", tmp_path / "step_main", "-O1")
    done = subprocess.run([tmp_path / "step_main"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert "all passed" in done.stdout


def test_arm64(tmp_path):
    compiler, emulator = "aarch64-linux-gnu-g++", shutil.which("qemu-aarch64")
    if not shutil.which(compiler) or emulator is None:
        pytest.skip("needs Debian's g++-aarch64-linux-gnu and qemu-user")
    build_driver(compiler, tmp_path / "step_main", "-O2", "-static")
    done = subprocess.run(
        [emulator, tmp_path / "step_main", "no-fork"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout
    assert "instruction set baseline" in done.stdout
