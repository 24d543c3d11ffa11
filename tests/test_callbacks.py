"""What is called along a run: a user's callbacks, and those of every run."""

import io
import re

import numpy
import pytest
import torch
from small_runs import Seen, assert_same_bits, every_bit, own, own_pair, pixels, small

from fastgan import Callback, callbacks, data
from fastgan.run import checkpoint
from fastgan.trainer import Trainer


class Noted(Callback):
    def __init__(self):
        self.events = []

    def start(self, trainer):
        self.events.append(("start", trainer.step))

    def chunk(self, trainer, statistics):
        assert statistics.shape[1] == 4 and statistics.dtype == torch.float32
        self.events.append(("chunk", trainer.step))

    def line(self, trainer, line):
        self.events.append(("line", line["step"]))
        line["extra"] = {"a": numpy.float32(0.5), "b": [torch.tensor(2), 3]}

    def save(self, trainer, directory):
        self.events.append(("save", trainer.step))
        (directory / "beside.txt").write_text(str(trainer.step))

    def end(self, trainer, error):
        self.events.append(("end", error))

    def state_dict(self):
        return {"n": len(self.events)}

    def load_state_dict(self, state):
        self.events = [None] * state["n"]


def test_the_order_of_events_and_what_a_line_may_be_given(tmp_path):
    noted = Noted()
    t = small(tmp_path / "a", data="digits", callbacks=noted, checkpoint_every=10)
    t.fit(steps=15)
    events = [e for e in noted.events if e[0] != "chunk" or e[1] in (10, 15)]
    assert events == [
        ("start", 0), ("line", 10), ("chunk", 10), ("save", 10), ("chunk", 15), ("line", 15),
        ("save", 15), ("end", None),
    ]  # fmt: skip
    assert (tmp_path / "a" / "beside.txt").read_text() == "15"
    assert t.history[0]["extra"] == {"a": 0.5, "b": [2, 3]}
    n = len(noted.events)
    again = Noted()
    r = Trainer.resume(tmp_path / "a", callbacks=again)
    # The state of the last save, which did not know of its own event and of the end.
    assert len(again.events) == n - 2
    assert [line["extra"] for line in r.history] == [t.history[0]["extra"]]


def test_a_callback_that_cannot_go_beside_a_run_says_so_before_anything_is_written(tmp_path):
    class Particular(Callback):
        def check(self, trainer):
            assert trainer.out is None and trainer.engine is not None
            raise ValueError("not beside this run")

    with pytest.raises(ValueError, match="not beside this run"):
        small(tmp_path / "a", callbacks=Particular())
    assert not any(tmp_path.iterdir())
    small(tmp_path / "a").fit(steps=2)
    with pytest.raises(ValueError, match="not beside this run"):
        Trainer.resume(tmp_path / "a", data=small().data, callbacks=Particular())


def test_of_a_run_that_never_began_there_is_nothing_to_go_on_with(tmp_path, caplog):
    class Refusing(Callback):
        def start(self, trainer):
            raise ValueError("not today")

    with pytest.raises(ValueError, match="not today"):
        small(tmp_path / "a", callbacks=Refusing()).fit(steps=2)
    assert "to continue" not in caplog.text
    assert not list((tmp_path / "a").glob("checkpoint*"))
    assert small(tmp_path / "a").fit(steps=2)["steps"] == 2, "the directory is as good as new"
    again = Trainer.resume(tmp_path / "a", data=small().data, callbacks=Refusing())
    with pytest.raises(ValueError, match="not today"):
        again.fit(steps=4)
    assert "step 2 was saved" in caplog.text, "what there was is there still"


def test_pictures_are_kept_ever_further_apart(tmp_path):
    def kept(name):
        return sorted(int(p.stem) for p in (tmp_path / name / "samples").iterdir())

    small(tmp_path / "a", data="digits", log_every=2).fit(steps=27)
    assert kept("a") == [2, 4, 6, 8, 10, 12, 16, 20, 24, 27], "at the end too"
    small(tmp_path / "b", data="digits", log_every=2).fit(steps=14)
    Trainer.resume(tmp_path / "b").fit(steps=27)
    assert kept("b") == [2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 27]
    pair = [(tmp_path / name / "samples" / "00000024.png").read_bytes() for name in "ab"]
    assert pair[0] == pair[1]
    count = len(list(tmp_path.iterdir()))
    small(data="digits", log_every=2).fit(steps=4)
    assert len(list(tmp_path.iterdir())) == count


def test_states_of_two_callbacks_of_a_kind_are_told_apart(tmp_path):
    class Counter(Callback):
        def __init__(self, n):
            self.n = n

        def state_dict(self):
            return {"n": self.n}

        def load_state_dict(self, state):
            self.n = state["n"]

    class Named(Counter):
        name = "mine"

    small(tmp_path / "a", data="digits", callbacks=[Counter(1), Counter(2), Named(3)]).fit(steps=1)
    assert checkpoint.load(tmp_path / "a")["callbacks"] == {
        "Counter": {"n": 1}, "Counter-2": {"n": 2}, "mine": {"n": 3},
    }  # fmt: skip
    again = [Counter(0), Counter(0), Named(0)]
    Trainer.resume(tmp_path / "a", callbacks=again)
    assert [c.n for c in again] == [1, 2, 3]


def test_a_callback_that_draws_does_not_move_the_run(tmp_path):
    class Drawing(Callback):
        def start(self, trainer):
            torch.randn(3)

        def chunk(self, trainer, statistics):
            torch.randn(torch.randint(1, 9, ()).item())

        def line(self, trainer, line):
            torch.manual_seed(line["step"])

        def save(self, trainer, directory):
            torch.rand(2)

        def end(self, trainer, error):
            torch.rand(2)

    # OwnG draws its noise from torch's generator.
    runs = [own(tmp_path / name, checkpoint_every=7, log_every=3) for name in "ab"]
    runs[1].callbacks.insert(1, Drawing())
    for t in runs:
        t.fit(steps=20)
        t.fit(steps=30)
    assert_same_bits(*map(every_bit, runs))
    drawn = []
    t = own(callbacks=Seen(lambda t: drawn.append(torch.randn(2))))
    torch.manual_seed(5)
    expected = torch.randn(2), torch.randn(2)
    torch.manual_seed(5)
    t.fit(steps=1)
    drawn.append(torch.randn(2))
    assert all(map(torch.equal, drawn, expected)), "it draws from the program's generator"


def test_a_look_from_a_callback_sees_the_run_and_saves_it_whole(tmp_path):
    def look(trainer):
        if trainer.step == 10:
            seen.append(trainer.sample(3))
            trainer.save()

    seen = []
    t = own(tmp_path / "a", callbacks=Seen(look))
    t.fit(steps=10)
    whole = own()
    whole.fit(steps=20)
    again = Trainer.resume(tmp_path / "a", *own_pair(7), data.open(pixels()))
    assert torch.equal(again.sample(3), seen[0])
    again.fit(steps=20)
    assert_same_bits(every_bit(whole), every_bit(again))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line.update(d_loss=f"{line['d_loss']:.2f}"), "'d_loss' is '.*of its own"),
        (lambda line: line.clear(), "'step' is missing.*of its own"),
    ],
)
def test_what_would_spoil_the_log_is_refused_before_it_is_written(tmp_path, change, message):
    class Spoils(Callback):
        def line(self, trainer, line):
            change(line)

    with pytest.raises(ValueError, match=message):
        small(tmp_path / "a", callbacks=Spoils()).fit(steps=12)
    resumed = Trainer.resume(tmp_path / "a", data=pixels())
    assert resumed.step == 10
    resumed.fit(steps=20)
    assert [line["step"] for line in resumed.history] == [20]


def test_a_callback_can_stop_the_run(capsys):
    t = small(callbacks=Seen(lambda t: t.stop("a plateau") if t.step >= 5 else None), log_every=1)
    assert t.fit(steps=1000)["steps"] < 100
    t = small(console="lines", callbacks=Seen(lambda t: t.stop("a plateau")))
    t.fit(steps=1000)
    assert "stopped by a plateau: step 1, epoch 1" in capsys.readouterr().out


# --- modes ----------------------------------------------------------------------------------------


def test_a_layer_that_the_user_froze_in_eval_stays_there():
    g, d = own_pair()
    g.body[1].eval()
    before = g.body[1].running_mean.clone()
    t = own(pair=lambda: (g, d))
    assert not g.body[1].training and g.training
    t.fit(steps=3)
    assert not g.body[1].training and torch.equal(g.body[1].running_mean, before)


def test_eval_left_between_two_fits_does_not_change_how_the_next_trains():
    g, d = own_pair()
    g.body[2].eval()
    t, same = own(pair=lambda: (g, d)), own()
    same.generator.body[2].eval()
    for trainer in (t, same):
        trainer.fit(steps=5)
    t.generator.eval()
    t.discriminator.eval()
    t.fit(steps=10)
    same.fit(steps=10)
    assert_same_bits(every_bit(t), every_bit(same))
    assert t.discriminator[3].training and t.generator.body[1].training
    assert not t.generator.body[2].training, "a layer of the user's own in eval stays there"


def test_eval_left_by_a_callback_does_not_change_how_the_fit_goes_on():
    def look(trainer):
        trainer.generator.eval()
        trainer.discriminator.eval()

    def freeze(trainer):
        trainer.generator.body[2].eval()

    t = own(callbacks=[Seen(freeze), Seen(look)], log_every=1)
    same = own(callbacks=Seen(freeze), log_every=1)
    for trainer in (t, same):
        trainer.fit(steps=6)
    assert_same_bits(every_bit(t), every_bit(same))
    assert t.discriminator[3].training and not t.generator.body[2].training


def test_networks_that_are_in_eval_mode_as_a_whole_are_trained():
    pair = [network.eval() for network in own_pair()]
    t, same = own(pair=lambda: pair), own()
    t.fit(steps=5)
    same.fit(steps=5)
    assert_same_bits(every_bit(t), every_bit(same))


# --- what a person sees ---------------------------------------------------------------------------


def test_fit_says_what_it_does(capsys):
    t = small(console="auto")
    t.fit(steps=12)
    said = capsys.readouterr().out.splitlines()
    # On a busy machine there are lines between.
    first, engine, last = (line for line in said if not line.startswith("step "))
    assert "tensor" in first and engine.startswith("engine eager: ")
    number = r"-?\d+\.\d+"
    assert re.fullmatch(
        rf"done: step 12, epoch 2, D loss {number}, G loss {number}, {number} ms/step", last
    )
    t.fit(steps=12)
    said = capsys.readouterr().out
    assert "continuing at step 12" in said
    assert "nothing left to do: the run has 12 steps (epoch 2), and limits are totals" in said


def test_lines_come_now_and_then_and_say_what_is_left(monkeypatch, capsys):
    monkeypatch.setattr(callbacks.Console, "SECONDS_BETWEEN_LINES", 0.0)
    small(console="lines").fit(steps=25)
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("step ")]
    assert [re.match(r"step (\d+)/25, \d+ s left, epoch", x)[1] for x in lines] == ["10", "20"]


def test_a_bar_and_silence(capsys):
    small(console="bar").fit(steps=12)
    assert "12/12" in capsys.readouterr().err
    small(console="none").fit(steps=2)
    assert capsys.readouterr() == ("", "")


def broken():
    class Pipe(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    return Pipe()


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [broken, closed, lambda: None], ids=["broken", "closed", "none"])
def test_a_screen_that_fails_ends_no_run(tmp_path, monkeypatch, stream):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{name}", stream())
    t = small(tmp_path / "a", console="auto")
    t.fit(steps=2)
    assert checkpoint.load(tmp_path / "a")["step"] == 2


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_a_terminal_has_no_letters_for_is_written_in_others(tmp_path, encoding):
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding=encoding)
    out = tmp_path / "\u65e5\u672c"
    small(out, callbacks=callbacks.Console("lines", stream)).fit(steps=2)
    text = written.getvalue().decode(encoding)
    assert "\\u65e5\\u672c" in text and "done: step 2" in text
    assert checkpoint.load(out)["step"] == 2


def test_a_console_of_the_users_own_stands_in_the_place_of_ours(capsys):
    stream = io.StringIO()
    t = small(console="auto", callbacks=callbacks.Console("lines", stream))
    t.fit(steps=2)
    assert "done: step 2" in stream.getvalue() and capsys.readouterr().out == ""

    class Fewer(callbacks.Samples):
        COUNT = 4

    found = [type(c) for c in small(callbacks=Fewer()).callbacks]
    assert found == [callbacks.Console, Fewer, callbacks.Checkpoints]


def test_a_minute_without_a_save_is_a_minute(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: now[0])
    saves = []

    class Clock(Callback):
        def chunk(self, trainer, statistics):
            now[0] += 25.0

        def save(self, trainer, directory):
            saves.append(trainer.step)

    t = small(tmp_path / "a", callbacks=Clock(), log_every=1)
    t.fit(steps=10)
    assert saves == [3, 6, 9, 10], "each 75 seconds, and at the end"


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_samples_are_drawn_at_every_save_whatever_the_mode(tmp_path, mode):
    t = small(tmp_path / "a")
    getattr(t.generator, mode)()
    t.fit(steps=2)
    assert (tmp_path / "a" / "samples" / "00000002.png").exists()
