"""A run under a notebook's cell."""

import sys
import types

import pytest
from PIL import Image
from small_runs import own

import fastgan
from fastgan.config import ConfigError


@pytest.fixture
def notebook(monkeypatch):
    """IPython, as far as it is asked, and what it was told."""
    told = []

    class Handle:
        def update(self, picture):
            told.append(("update", picture))

    def display(picture, display_id):
        told.append(("display", picture))
        return Handle()

    room, module = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    room.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", room)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return told


def test_a_run_is_drawn_in_place(notebook):
    t = own(callbacks=fastgan.Live(seconds=0))
    t.fit(steps=30)
    kinds = [kind for kind, _ in notebook]
    assert kinds[0] == "display" and set(kinds[1:]) == {"update"} and len(kinds) >= 3
    pictures = [picture for _, picture in notebook]
    assert all(isinstance(p, Image.Image) for p in pictures)
    assert len({p.size for p in pictures}) == 1
    assert pictures[0].tobytes() != pictures[-1].tobytes()


def test_drawing_moves_no_number_of_the_run(notebook):
    shown, plain = own(callbacks=fastgan.Live(seconds=0)), own()
    shown.fit(steps=30)
    plain.fit(steps=30)
    assert [line["g_loss"] for line in shown.history] == [line["g_loss"] for line in plain.history]


def test_of_vectors_the_losses_alone(notebook):
    import torch

    g, d = torch.nn.Linear(2, 5), torch.nn.Linear(5, 1)
    t = fastgan.Trainer(g, d, torch.randn(60, 5), latent_dim=2, console="none")
    with_samples = fastgan.Live().picture(own())
    assert fastgan.Live().picture(t).width < with_samples.width


@pytest.mark.parametrize("here", ["a script", "IPython on a terminal"])
def test_elsewhere_it_says_what_to_do(here, monkeypatch):
    if here == "a script":
        monkeypatch.setitem(sys.modules, "IPython", None)
    else:
        room, module = types.ModuleType("IPython"), types.ModuleType("IPython.display")
        room.get_ipython = lambda: types.SimpleNamespace()
        monkeypatch.setitem(sys.modules, "IPython", room)
        monkeypatch.setitem(sys.modules, "IPython.display", module)
    with pytest.raises(ConfigError, match="no notebook.*trainer.show"):
        own(callbacks=fastgan.Live()).fit(steps=10)


def test_seconds_are_a_number():
    with pytest.raises(ConfigError, match="seconds is"):
        fastgan.Live(seconds=-1)
