"""fastgan demo: a GAN on a density of the plane, looked at as it learns."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastgan import options
from fastgan.commands import watching
from fastgan.trainer import Trainer
from fastgan.until import Until

LOOKS = 40


def add(commands: argparse._SubParsersAction) -> None:
    """What the command takes."""
    parser = commands.add_parser(
        "demo",
        allow_abbrev=False,
        help="train on points of a plane and show D's surface and what theory says",
        description="Train a small pair on a density of the plane (--data ring8, grid25, gaussian "
        "or moons; default: ring8), and write demo.html and demo.gif: data, samples, D's surface, "
        f"and lower bounds on the Jensen-Shannon divergence, at about {LOOKS} steps of the run. "
        "The options of `fastgan train` hold.",
    )
    parser.set_defaults(command=run, parser=parser)
    options.start(parser.add_argument_group("this demo").add_argument)
    options.add(parser)


def run(chosen: argparse.Namespace) -> int:
    """Train, and say what was written."""
    # Here, as training must not wait for what only a page needs.
    from fastgan.report import demo

    given = {"data": "ring8", **options.given(chosen)}
    config, _ = options.config_of(chosen, given)
    if config.out is None:
        config = config.with_(out=Path("runs", "demo"), if_exists="count")
    if "log_every" not in given:
        steps = config.steps or 5000
        config = config.with_(log_every=max(1, steps // LOOKS))
    shown = demo.Demo()
    callbacks = [shown, *watching.callbacks(chosen)]
    if chosen.until is not None:
        callbacks.append(Until(chosen.until))
    trainer = Trainer(None, None, None, config, callbacks=callbacks)
    trainer.fit()
    trainer.close()
    if trainer.world.leads:
        print(trainer.out / demo.PAGE)
        print(trainer.out / demo.GIF)
    return 0
