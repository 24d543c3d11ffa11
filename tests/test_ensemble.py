"""Many runs as one: each is bit for bit the same run alone, whatever runs beside it."""

import threading

import pytest
import torch
from many_runs import POINTS, Draws, alone, assert_same, fused, noisy, plain
from torch import nn

import fastgan
from fastgan import Callback, Ensemble, grid
from fastgan.config import ConfigError
from fastgan.engines import turns

# The same bits


@fused
def test_each_member_is_the_same_run_alone():
    members = grid(seed=[0, 7], lr=[1e-3, 2e-4]) + [
        # Of other shapes, beside them.
        {"width": 40, "batch_size": 17, "ema": 0.99},
        {"latent_dim": 9, "data": "grid25", "d_steps": 2},
        {"loss": "hinge", "lr_schedule": "cosine:60"},
    ]
    whole = Ensemble(members=members, at_once=3, **POINTS)
    assert all(t.engine.name == "fused" and t.engine.beside for t in whole)
    assert whole[0].data.samples is whole[1].data.samples is not whole[5].data.samples
    results = whole.fit(steps=45)
    assert [row["status"] for row in results] == ["done"] * 7
    for member, settings in zip(whole, members, strict=True):
        assert_same(member, alone(**settings))


@fused
def test_calls_that_follow_each_other_are_one_and_threads_are_as_before():
    before = torch.get_num_threads()
    whole = Ensemble(members=2, **POINTS)
    whole.fit(steps=13)
    whole.fit(steps=45)
    assert torch.get_num_threads() == before
    assert_same(whole[1], alone(seed=1))


def normed(config):
    body = (nn.Linear(2, 24), nn.LayerNorm(24), nn.GELU(), nn.Linear(24, 9), nn.SiLU())
    return plain(config)[0], nn.Sequential(*body, nn.Linear(9, 1))


@fused
def test_members_of_layers_that_keep_more_than_their_output():
    options = {"loss": "wasserstein", "penalties": "wgan-gp"}
    whole = Ensemble(normed, members=2, at_once=2, **POINTS, **options)
    assert all(t.engine.name == "fused" for t in whole)
    whole.fit(steps=45)
    for seed, member in enumerate(whole):
        torch.manual_seed(seed)
        assert_same(member, alone(pair=normed(member.config), seed=seed, **options))


@fused
def test_networks_of_a_program_on_two_roads():
    """Members that need Python go one after the other, and all have their own random states."""
    whole = Ensemble(
        lambda config: plain(config) if config.seed % 2 else noisy(config),
        members=4, at_once=2, **{**POINTS, "threads": None},
    )  # fmt: skip
    assert [member.beside for member in whole.members] == [False, True] * 2
    state = torch.get_rng_state()
    whole.fit(steps=45)
    assert torch.equal(torch.get_rng_state(), state)
    for seed, member in enumerate(whole):
        torch.manual_seed(seed)
        pair = (plain if seed % 2 else noisy)(member.config)
        threads = torch.get_num_threads()
        assert_same(member, alone(pair=pair, seed=seed, threads=threads))


@fused
def test_a_schedule_and_callbacks_of_a_program_move_nothing():
    def schedule(step):
        torch.randn(3)
        return 1 / (1 + step)

    whole = Ensemble(members=4, at_once=4, callbacks=Draws, lr_schedule=schedule, **POINTS)
    assert all(member.beside for member in whole.members)
    whole.fit(steps=45)
    for seed, member in enumerate(whole):
        other = alone(seed=seed, lr_schedule=schedule)
        assert_same(member, other)
        ours, theirs = (t.random_states.state_dict()["cpu"] for t in (member, other))
        assert torch.equal(ours, theirs)


class Counting(Callback):
    lock, most, now = threading.Lock(), 0, 0

    def chunk(self, trainer, statistics):
        with Counting.lock:
            Counting.now += 1
            Counting.most = max(Counting.most, Counting.now)
        threading.Event().wait(0.001)
        with Counting.lock:
            Counting.now -= 1


@fused
def test_one_member_at_a_time_is_in_python_and_steps_are_beside(monkeypatch):
    """The steps of two members meet in time: each waits there until the other has come."""
    meeting, met = threading.Barrier(2, timeout=60), []
    stepped = torch.ops.fastgan.fused_run

    def run(*arguments):
        if not met:
            meeting.wait()
            met.append(True)
        return stepped(*arguments)

    monkeypatch.setattr(torch.ops.fastgan, "fused_run", run)
    Counting.most = 0
    Ensemble(members=2, at_once=2, callbacks=Counting, **POINTS).fit(steps=60)
    assert met and Counting.most == 1


@fused
def test_steps_leave_python_to_others(monkeypatch):
    """While the operator is at work another thread runs, which it could not otherwise."""
    engine = alone(1).engine
    engine.run(1)
    now, stepped = [], torch.ops.fastgan.fused_run

    def run(*arguments):
        now.append("stepping")
        try:
            return stepped(*arguments)
        finally:
            now.clear()

    monkeypatch.setattr(torch.ops.fastgan, "fused_run", run)
    seen, steps = 0, 1000
    while seen < 3 and steps < 10**7:  # however fast the machine is
        thread = threading.Thread(target=engine.run, args=(steps,))
        thread.start()
        seen = 0
        while thread.is_alive():
            thread.join(0.001)
            seen += bool(now)
        steps *= 4
    assert seen >= 3


def test_alone_nobody_waits_for_a_turn():
    with turns.aside() as nothing:
        assert nothing is None


def test_a_turn_comes_back_after_an_error():
    ours, seen = turns.Turns(), []

    def outside():
        return turns.nullcontext(seen.append("outside"))

    def other():
        with ours.taken(outside):
            seen.append("other")

    with ours.taken(outside):
        with pytest.raises(KeyError), turns.aside():
            thread = threading.Thread(target=other)
            thread.start()
            thread.join(60)
            raise KeyError
        assert seen == ["outside", "other"]
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.05)
        assert len(seen) == 2  # it waits for us again
    thread.join(60)
    assert len(seen) == 3


def test_a_loss_with_a_state_is_copied_for_each_member():
    class Counted:
        def __init__(self):
            self.calls = 0

        def d_loss(self, real, fake):
            self.calls += 1
            return (fake - real).mean()

        def g_loss(self, fake, real):
            return -fake.mean()

    counted = Counted()
    loss = fastgan.Loss("counted", counted.d_loss, counted.g_loss, scores="raw")
    whole = Ensemble(members=2, loss=loss, engine="eager", **POINTS)
    whole.fit(steps=5)
    assert counted.calls == 0
    assert [t.config.loss.d_loss.__self__.calls for t in whole] == [5, 5]


def test_a_slice_of_the_data_for_each_member():
    points = torch.randn(60, 2)
    slices = [{"data": points[:30]}, {"data": points[30:], "seed": 5}]
    settings = {k: v for k, v in POINTS.items() if k != "data"}
    whole = Ensemble(members=slices, **settings)
    results = whole.fit(steps=20)
    assert [row["data"] for row in results] == ["data 0", "data 1"]
    assert_same(whole[1], alone(20, **slices[1]))


def test_members_may_have_limits_of_their_own():
    whole = Ensemble(members=[{"steps": 13}, {"steps": 20}], **POINTS)
    assert [row["step"] for row in whole.fit()] == [13, 20]
    with pytest.raises(ConfigError, match="say when to stop"):
        Ensemble(members=2, **POINTS).fit()
