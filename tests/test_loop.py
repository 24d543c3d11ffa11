"""One call of fit: chunks, signals, what an error leaves behind."""

import json
import os
import signal
import threading

import pytest
import torch
from small_runs import OwnG, Seen, assert_same_bits, every_bit, own, own_pair, pixels, small
from torch import nn

from fastgan import Callback, NonFiniteLossError, loop, losses
from fastgan.run import checkpoint
from fastgan.run.signals import NUMBERS
from fastgan.trainer import Trainer


@pytest.fixture(autouse=True)
def handlers():
    """No handler outlives a test."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup has ignored
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_chunks_grow_to_a_fifth_of_a_second():
    pace = loop._Pace()
    assert pace.chunk(100, 7) == 1
    for _ in range(10):
        n = pace.chunk(10_000)
        pace.record(n, n * 1e-3)
    assert pace.chunk(10_000) == 200 and pace.chunk(10_000, 30) == 30
    assert pace.ms_per_step == pytest.approx(1.0)
    pace.record(1, 5.0)
    assert pace.chunk(100) == 1


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "error", "word"),
    [
        (signal.SIGINT, KeyboardInterrupt, "Ctrl-C"),
        (signal.SIGTERM, SystemExit, "SIGTERM"),
        (signal.SIGHUP, SystemExit, "SIGHUP"),
    ],
)
def test_a_signal_finishes_the_step_and_saves(tmp_path, caplog, capsys, number, error, word):
    handlers = [signal.getsignal(n) for n in NUMBERS]

    def interrupt(trainer):
        if trainer.step == 20:
            os.kill(os.getpid(), number)

    t = small(tmp_path / "a", data="digits", callbacks=Seen(interrupt), console="lines")
    with pytest.raises(error) as caught:
        t.fit(steps=10_000)
    if error is SystemExit:
        assert caught.value.code == 128 + number
    assert f"stopped by {word} after step {t.step}" in caplog.text
    assert f"fastgan train --resume {tmp_path / 'a'}" in caplog.text
    assert f"stopped by {word}: step {t.step}" in capsys.readouterr().out
    assert 20 <= t.step < 100
    assert checkpoint.load(tmp_path / "a")["step"] == t.step
    assert [signal.getsignal(n) for n in NUMBERS] == handlers
    assert (tmp_path / "a" / "samples.png").exists()
    assert Trainer.resume(tmp_path / "a").fit(steps=t.step + 3)["steps"] == t.step + 3


def test_a_signal_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    t = small(callbacks=Seen(lambda t: os.kill(os.getpid(), signal.SIGINT)))
    assert t.fit(steps=5)["steps"] == 5


def test_a_handler_of_the_users_own_is_called(tmp_path):
    heard = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    t = small(callbacks=Seen(lambda trainer: os.kill(os.getpid(), signal.SIGTERM)))
    t.fit(steps=1000)
    assert heard == [signal.SIGTERM] and t.step < 1000


def test_own_networks_are_resumed_by_code(tmp_path):
    t = own(tmp_path / "own", callbacks=Seen(lambda trainer: os.kill(os.getpid(), signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt) as caught:
        t.fit(steps=100)
    assert (
        f"Trainer.resume('{tmp_path / 'own'}', generator=..., discriminator=..., data=...)"
    ) in str(caught.value)


def test_fit_works_outside_the_main_thread():
    t, error = small(), []

    def work():
        try:
            t.fit(steps=5)
        except BaseException as e:
            error.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not error and t.step == 5


def test_fit_within_fit_is_refused_and_nothing_is_lost(tmp_path):
    class Again(Callback):
        def chunk(self, trainer, statistics):
            if trainer.step < 4:
                trainer.fit(steps=trainer.step + 1)

    t = own(tmp_path, callbacks=Again())
    with pytest.raises(ValueError, match=r"fit\(\) is at work, .* trainer.stop\(why\)"):
        t.fit(steps=8)
    assert checkpoint.load(tmp_path)["step"] == t.step
    t.own_callbacks = t.callbacks = ()
    assert t.fit(steps=8)["steps"] == 8


# --- losses and weights that are not finite -------------------------------------------------------


def breaking_at(step, **options):
    """A loss whose D loss is NaN from the given step on, counted from 1."""
    calls = []

    def d_loss(real, fake):
        calls.append(1)
        return (real.mean() - fake.mean()) * (float("nan") if len(calls) >= step else 1.0)

    return losses.Loss("mine", d_loss, lambda fake: fake.mean(), **options)


def test_the_first_bad_step_is_named_and_the_good_checkpoint_kept(tmp_path):
    t = own(tmp_path, loss=breaking_at(37), log_every=20, checkpoint_every=10, lr=0.5)
    with pytest.raises(NonFiniteLossError) as caught:
        t.fit(steps=100)
    assert caught.value.step == 37
    text = str(caught.value)
    assert "at step 37 D loss is nan" in text and "lr is 0.5" in text
    assert f"the last good checkpoint is {tmp_path / 'checkpoint.pt'} (step 30)" in text
    state = checkpoint.load(tmp_path)
    assert state["step"] == 30 and all(torch.isfinite(w).all() for w in state["generator"].values())
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [20]


def test_bad_weights_never_replace_a_good_checkpoint(tmp_path):
    t = small(tmp_path / "a")
    t.fit(steps=5)
    before = (tmp_path / "a" / "checkpoint.pt").read_bytes()
    with torch.no_grad():
        t.generator.fc[0].bias[3] = float("nan")
    with pytest.raises(NonFiniteLossError, match="weights of the generator are not finite"):
        t.save()
    assert (tmp_path / "a" / "checkpoint.pt").read_bytes() == before


# --- exceptions -----------------------------------------------------------------------------------


class Failing(Callback):
    def __init__(self, event, step):
        self.event, self.step = event, step

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name not in ("start", "chunk", "line", "save", "end") or name != self.event:
            return found

        def fail(trainer, *what):
            if trainer.step >= self.step:
                raise ZeroDivisionError(f"in {name}")

        return fail


def test_a_run_that_a_callback_did_not_let_begin_can_be_begun_again(tmp_path, caplog):
    t = own(tmp_path / "cut", callbacks=Failing("start", 0))
    with pytest.raises(ZeroDivisionError, match="in start"):
        t.fit(steps=15)
    assert "was saved" not in caplog.text and not (tmp_path / "cut/checkpoint.pt").exists()
    again, whole = own(tmp_path / "cut"), own(tmp_path / "whole")
    again.fit(steps=15)
    whole.fit(steps=15)
    assert_same_bits(every_bit(whole), every_bit(again))


@pytest.mark.parametrize("event", ["chunk", "line", "save", "end"])
def test_an_exception_in_a_callback_leaves_the_last_whole_step(tmp_path, caplog, event):
    first = {"chunk": 4, "line": 10, "save": 0, "end": 0}[event]
    t = own(tmp_path / "cut", callbacks=Failing(event, first))
    with pytest.raises(ZeroDivisionError, match=f"in {event}"):
        t.fit(steps=15)
    stopped = {"line": 10, "save": 15, "end": 15}.get(event, t.step)
    saved = checkpoint.load(tmp_path / "cut")
    assert saved["step"] == t.step == stopped
    if event != "end":
        assert f"step {stopped} was saved before the error" in caplog.text

    again = Trainer.resume(tmp_path / "cut", *own_pair(8), t.data)
    again.fit(steps=30)
    whole = own(tmp_path / "whole")
    whole.fit(steps=30)
    assert_same_bits(every_bit(whole), every_bit(again))
    log = (tmp_path / "whole" / "log.jsonl").read_bytes()
    assert log == (tmp_path / "cut" / "log.jsonl").read_bytes()


class Fragile(torch.utils.data.Dataset):
    """Items that cannot be read after a number of readings."""

    def __init__(self, allowed=None):
        self.items, self.allowed, self.read = pixels(), allowed, 0

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        self.read += 1
        if self.allowed is not None and self.read > self.allowed:
            raise OSError("the disk is gone")
        return self.items[i]


def test_an_exception_in_the_data_leaves_the_last_whole_step(tmp_path, caplog):
    options = {"budget_bytes": 0, "workers": 0, "augmented": False}
    broken = Fragile()

    def begin(trainer):
        if trainer.step == 1:  # within the twelfth batch; every seventh has two items
            broken.allowed = broken.read + 9 * 8 + 2 + 3

    t = own(tmp_path / "cut", data=broken, callbacks=Seen(begin), **options)
    with pytest.raises(OSError, match="the disk is gone"):
        t.fit(steps=30)
    assert t.step == 11 and checkpoint.load(tmp_path / "cut")["step"] == 11
    again = Trainer.resume(tmp_path / "cut", *own_pair(8), Fragile())
    again.fit(steps=30)
    whole = own(tmp_path / "whole", data=Fragile(), **options)
    whole.fit(steps=30)
    assert_same_bits(every_bit(whole), every_bit(again))
    assert again.history == whole.history


class Breaking(OwnG):
    """Raises within a step: at its n-th pass."""

    def __init__(self, n):
        super().__init__()
        self.left = n

    def forward(self, z):
        self.left -= self.training
        if self.training and self.left == 0:
            raise ArithmeticError("in a step")
        return super().forward(z)


def test_an_exception_in_the_middle_of_a_step_keeps_the_last_save(tmp_path, caplog):
    g, d = Breaking(2 * 7 + 2), own_pair()[1]  # G's own update in the eighth step
    t = own(tmp_path / "a", pair=lambda: (g, d), checkpoint_every=5)
    g.left = 2 * 7 + 2
    with pytest.raises(ArithmeticError, match="in a step"):
        t.fit(steps=30)
    assert "in the middle of step 8" in caplog.text and "step 5 is in" in caplog.text
    assert checkpoint.load(tmp_path / "a")["step"] == 5
    again = Trainer.resume(tmp_path / "a", OwnG(), nn.Sequential(*own_pair()[1]), t.data)
    assert again.fit(steps=9)["steps"] == 9


def test_what_cannot_be_saved_is_said_before_the_first_step(tmp_path):
    class Unsaved(nn.Sequential):
        def get_extra_state(self):
            return {"when": object()}

        def set_extra_state(self, state):
            pass

    g, d = own_pair()
    t = own(tmp_path / "a", pair=lambda: (g, Unsaved(*d)))
    with pytest.raises(ValueError, match="is a object; a checkpoint holds tensors"):
        t.fit(steps=5)
    assert t.step == 0
    again = own(tmp_path / "a")
    assert again.fit(steps=2)["steps"] == 2, "the directory is no dead end"


def test_two_runs_do_not_write_to_one_directory(tmp_path):
    a, b = small(tmp_path / "a"), small(tmp_path / "a")
    caught = []

    def other(trainer):
        if not caught:
            with pytest.raises(OSError, match="is in use by another run .process") as error:
                b.fit(steps=3)
            caught.append(error)

    a.callbacks.append(Seen(other))
    a.fit(steps=3)
    assert caught and b.step == 0
    with pytest.raises(FileExistsError, match="already holds a run"):
        b.fit(steps=3)


def test_a_trainer_that_was_left_behind_does_not_write_over_what_another_saved(tmp_path):
    first = small(tmp_path / "a")
    first.fit(steps=3)
    later = Trainer.resume(tmp_path / "a", data=pixels())
    later.fit(steps=9)
    for late, step in ((lambda: first.fit(steps=5), 5), (first.save, 3)):
        with pytest.raises(
            FileExistsError, match=rf"holds step 9, .* step {step} would replace it"
        ):
            late()
        assert checkpoint.load(tmp_path / "a")["step"] == 9
    later.fit(steps=10)
    # One that goes back on purpose has read what it leaves.
    back = Trainer.resume(tmp_path / "a" / "checkpoint-10.pt", data=pixels())
    later.fit(steps=12)
    with pytest.raises(FileExistsError, match="holds step 12"):
        back.fit(steps=11)


def test_a_save_between_two_fits_asks_for_the_directory_too(tmp_path):
    a, b = small(tmp_path / "a"), small(tmp_path / "a")
    a.save()
    with pytest.raises(FileExistsError, match="already holds a run"):
        b.save()
    caught = []

    def other(trainer):
        with pytest.raises(OSError, match="is in use by another run .process"):
            b.save()
        caught.append(trainer.save())

    a.callbacks.append(Seen(other))
    a.fit(steps=1)
    a.save()
    assert caught and b.step == 0 and checkpoint.load(tmp_path / "a")["step"] == 1


def test_every_callback_hears_of_the_end_though_one_fails_there(tmp_path):
    heard = []

    class Failing(Callback):
        def end(self, trainer, error):
            raise OSError("no connection")

    class Listening(Callback):
        def end(self, trainer, error):
            heard.append(error)

    run = small(tmp_path / "a", callbacks=[Listening(), Failing(), Listening(), Failing()])
    with pytest.raises(OSError, match="no connection"):
        run.fit(steps=2)
    assert heard[0] is None and str(heard[1]) == "no connection"
    assert checkpoint.load(tmp_path / "a")["step"] == 2
