"""The command `fastgan sweep`: an ensemble from the command line."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fastgan import options
from fastgan.commands import watching
from fastgan.config import Config, ConfigError, field_of
from fastgan.config.config import HINTS
from fastgan.config.kinds import integer
from fastgan.many import Ensemble, Results, grid
from fastgan.statistics import MEASURE_NAMES, NAMES
from fastgan.words import nearest


def add(commands: Any) -> None:
    """The command and its options."""
    sweep = commands.add_parser(
        "sweep",
        allow_abbrev=False,
        help="train many pairs that differ in seeds and settings",
        description="Train a pair for every combination of seeds and settings, as many at once as "
        "there are cores, and leave each as a run of its own in a directory of the whole, beside "
        "results.csv, ensemble.json and ensemble.jsonl, the log of all. The options of `fastgan "
        "train` hold for all of them.",
    )
    sweep.set_defaults(command=run, parser=sweep)
    own = sweep.add_argument_group("this sweep").add_argument
    own(
        "--seeds",
        metavar="N|N,N,...",
        help="how many seeds, from --seed on, or which (default: 1)",
    )
    own(
        "--set",
        action="append",
        metavar="NAME=VALUE,VALUE,...",
        help="the values that a setting takes in turn; may be given for several settings, of which "
        "every combination is trained. Where a value has several parts, blanks divide them",
    )
    own("--by", metavar="NAME", help="say which member is best by a metric or a column")
    own("--at-once", metavar="N", help="members trained at once (default: torch's threads)")
    own("--resume", metavar="DIRECTORY", help="continue a sweep; its done members stay done")
    own("--data-changed", action="store_true", help="with --resume: as for `fastgan train`")
    options.start(own)
    own("--json", action="store_true", help="end with one line of JSON on stdout; the rest: stderr")
    own("--quiet", action="store_true", help="say nothing but errors")
    options.add(sweep)


def run(chosen: argparse.Namespace) -> int:
    """Do it: 0; 1 if no member is done."""
    given = options.given(chosen)
    at_once = None
    if chosen.at_once is not None:
        at_once = field_of("threads").metadata["kind"].take_text("--at-once", chosen.at_once)
    watched = bool(watching.callbacks(chosen))  # which a wrong word or a missing package ends here
    callbacks = (lambda: watching.callbacks(chosen)) if watched else None
    if chosen.by is not None:
        _check_by(chosen.by)
    if chosen.resume is None:
        ensemble = _new(chosen, given, callbacks, at_once)
    else:
        ensemble = _resumed(chosen, given, callbacks, at_once)
    shown = ensemble.progress
    shown.mode = "none" if chosen.quiet else shown.mode
    shown.stream = sys.stderr if chosen.json else None
    results, best = ensemble.fit(until=chosen.until), None
    done = any(row["status"] == "done" for row in results)
    try:
        if chosen.by is not None and done:
            trainer = ensemble.best(chosen.by)
            best = next(m.name for m in ensemble.members if m.trainer is trainer)
            results = ensemble.results()
    finally:  # whatever could not be measured
        _show(shown.say, results, chosen.by, best)
    if chosen.json:
        summary = {"out": str(ensemble.out), "best": best, "members": results}
        print(json.dumps({**summary, "spread": results.spread()}), flush=True)
    return 0 if done else 1


def _check_by(name: str) -> None:
    """ConfigError for a name that would be found wrong after hours of training."""
    # Here, as most sweeps do without.
    from fastgan.metrics import METRICS

    means = [f"{name}_mean" for name in NAMES]
    known = [*METRICS, *NAMES, *means, *MEASURE_NAMES, "jsd", "step", "train_seconds"]
    if name not in known:
        raise ConfigError(
            f"--by is {name!r}; expected one of {', '.join(known)}{nearest(name, known)}"
        )


def _show(say: Any, results: Results, by: str | None, best: str | None) -> None:
    say(f"{results}")
    if (spread := results.spread()) and len(results) > 1:
        say(f"mean over {'members' if not spread.varied else 'seeds'}:\n{spread}")
    if best is not None:
        say(f"best by {by}: member {best}")


def _new(
    chosen: argparse.Namespace, given: dict[str, Any], callbacks: Any, at_once: int | None
) -> Ensemble:
    if chosen.data_changed:
        raise ConfigError("--data-changed goes with --resume")
    varied = _varied(chosen)
    for name in varied:
        if name in given:
            raise ConfigError(
                f"{name} is given by {options.option(name)} and by --set; leave one of them out"
            )
    # Which preset suits is told by the model and the data.
    first = {name: values[0] for name, values in varied.items() if name in ("model", "data")}
    config, _ = options.config_of(chosen, {**given, **first})
    if "seed" not in varied:
        varied = {**varied, "seed": _seeds(chosen.seeds, config)}
    elif chosen.seeds is not None:
        raise ConfigError("--seeds and --set seed= both say the seeds; leave one of them out")
    if config.out is None:
        stem = Path(str(config.data)).stem or "data"
        config = config.with_(out=Path("runs", f"{stem}-sweep"), if_exists="count")
    members = grid(**varied)
    return Ensemble(config=config, members=members, callbacks=callbacks, at_once=at_once)


def _resumed(
    chosen: argparse.Namespace, given: dict[str, Any], callbacks: Any, at_once: int | None
) -> Ensemble:
    for name in ("preset", "config", "seeds", "set"):
        if getattr(chosen, name) is not None:
            raise ConfigError(
                f"--{name} begins a new sweep; --resume goes on with its own settings"
            )
    if "out" in given:
        raise ConfigError("--out begins a new sweep; --resume goes on in its own directory")
    data = given.pop("data", None)
    return Ensemble.resume(
        chosen.resume,
        data=data,
        callbacks=callbacks,
        at_once=at_once,
        data_changed=chosen.data_changed,
        **given,
    )


def _varied(chosen: argparse.Namespace) -> dict[str, list[Any]]:
    """The settings of --set, each with its values."""
    varied: dict[str, list[Any]] = {}
    for text in chosen.set or ():
        name, sign, values = text.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not sign:
            raise ConfigError(f"--set is {text!r}; expected NAME=VALUE,VALUE,...")
        if name not in Config.__dataclass_fields__:
            near = nearest(name, Config.__dataclass_fields__, HINTS)
            raise ConfigError(
                f"--set: there is no setting {name!r}{near or '; see `fastgan settings`'}"
            )
        if name in varied:
            raise ConfigError(f"--set names {name} twice; give all of its values at once")
        kind = field_of(name).metadata["kind"]
        if not kind.metavar:
            raise ConfigError(f"--set: {name} is an object of a program, which no word can name")
        varied[name] = [
            kind.take_text(f"--set {name}", value.strip()) for value in values.split(",")
        ]
    return varied


def _seeds(text: str | None, config: Config) -> list[int]:
    kind = field_of("seed").metadata["kind"]
    if text is not None and "," in text:
        return [kind.take_text("--seeds", part.strip()) for part in text.split(",")]
    try:
        count = 1 if text is None else integer(1).take_text("--seeds", text)
    except ConfigError as error:
        raise ConfigError(f"{error}, or seeds with commas between them") from None
    first = config.seeded().seed
    return [(first + i) % 2**64 for i in range(count)]
