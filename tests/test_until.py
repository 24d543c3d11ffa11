"""Rules by which a run ends."""

import pytest
from small_runs import own, plain_pair
from torch import nn

from fastgan import Callback, Trainer, Until, cli, theory


class Told(Callback):
    """Puts numbers into the lines."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def line(self, trainer, line):
        line["diversity"] = line["number"] = self.numbers[trainer.step // 10 - 1]


def steps(rule, *numbers):
    t = own(callbacks=Told(*numbers))
    t.fit(steps=10 * len(numbers), until=rule)
    return t.step, t.stopped


def test_a_bound_on_a_number_of_the_line():
    assert steps("number<2", 5, 2, 1, 0) == (30, "until 'number<2': number is 1")
    assert steps(" number > 2.5e0 ", 1, 2, 3, 4)[0] == 30
    assert steps("number>-1", -3, -2, 0)[0] == 30
    assert steps("number<0", 5, 4, 3) == (30, None)
    assert steps("d_loss<1e9", 0, 0)[0] == 10, "a statistic's mean since the last line"


def test_a_number_that_becomes_no_better():
    assert steps("plateau:number:2", 5, 4, 4, 3, 3, 3, 0)[0] == 60
    assert steps("plateau:diversity:2", 1, 2, 3, 2, 3, 9)[0] == 50, "the higher the better"
    assert steps("plateau:number:1", 5, float("nan"), 1)[0] == 20


def test_a_function_as_before():
    t = own()
    t.fit(steps=50, until=lambda state: state.step >= 20)
    assert t.step == 20 and t.stopped == "until()"


@pytest.mark.parametrize(
    "rule", ["fid", "fid<", "plateau:fid", "plateau:fid:0", "fid<e", 3, "a<1<2"]
)
def test_a_rule_that_is_none(rule):
    with pytest.raises(ValueError, match="until is"):
        Until(rule)


def test_a_name_that_is_none_is_told_at_the_first_line():
    with pytest.raises(ValueError, match="'fdi' is neither in the log line nor a metric.*fid"):
        own().fit(steps=10, until="fdi<3")


def test_what_is_not_in_the_line_is_measured_and_moves_nothing():
    class Flat(Until):
        def _measure(self):
            super()._measure()  # refuses a name that is none
            return lambda t: t.evaluate("swd", self.n, features=nn.Flatten())["swd"]

    t = own(callbacks=Flat("swd<1e9", every=2, n=40))
    t.fit(steps=100)
    assert t.step == 20 and [("swd" in line) for line in t.history] == [False, True]
    twin = own()
    twin.fit(steps=20)
    for name in ("d_loss", "g_loss", "d_loss_mean"):
        assert [line[name] for line in t.history] == [line[name] for line in twin.history]


def test_the_divergence(monkeypatch):
    bound = theory.jsd_lower_bound
    monkeypatch.setattr(theory, "jsd_lower_bound", lambda r, f, steps: bound(r, f, steps=15))
    t = own(pair=plain_pair, callbacks=Until("jsd>0.01", every=1, n=50))
    t.fit(steps=40)
    assert t.step == 10 and 0.01 < t.history[0]["jsd"] < 0.7


def test_it_counts_on_in_a_resumed_run(tmp_path):
    numbers = (5, 5, 5, 5, 5, 5)
    watching = lambda: (Told(*numbers), Until("plateau:number:4"))  # noqa: E731
    t = own(tmp_path, callbacks=watching())
    t.fit(steps=30)
    again = Trainer.resume(
        tmp_path, t.generator, t.discriminator, t.data, callbacks=watching(), console="none"
    )
    again.fit(steps=60)
    assert again.step == 50 and "plateau" in again.stopped


def test_the_option(here, capsys):
    arguments = ["train", "--data", "ring8", "--steps", "50", "--log-every", "10", "--width", "4"]
    assert cli.main([*arguments, "--device", "cpu", "--until", "d_loss<1e9"]) == 0
    assert "stopped by until 'd_loss<1e9'" in capsys.readouterr().out
    assert cli.main([*arguments, "--until", "d_loss"]) == 2
    assert "until is 'd_loss'; expected" in capsys.readouterr().err
