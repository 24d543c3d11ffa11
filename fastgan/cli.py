"""The command line: fastgan train, sweep, table, sample, evaluate, report, export and more."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

import fastgan
from fastgan import config as config_room
from fastgan import models, options, resuming
from fastgan.callbacks import Callback, Console
from fastgan.commands import demo, evaluate, export, report, sample, sweep, table, watching
from fastgan.config import ConfigError
from fastgan.distributed import RankLostError, World, leave
from fastgan.run import checkpoint, pictures
from fastgan.trainer import Trainer
from fastgan.until import Until


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0: done. 1: training broke down (losses not finite). 2: wrong input, said in one line on stderr.
    129, 130, 143: stopped by SIGHUP, Ctrl-C or SIGTERM, with the run saved.
    """
    began = time.perf_counter()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["bench"]:
        # Before the parser sees them: every option that follows, --help too, is the benchmark's.
        return _bench(arguments[1:])
    if arguments[:1] == ["table"]:
        arguments = table.in_words(arguments[1:])
    notices = _Notices()
    logger = logging.getLogger("fastgan")
    if os.environ.get("RANK", "0") == "0":  # what one rank says, all would
        logger.addHandler(notices)
    try:
        chosen, unknown = _parser().parse_known_args(options.readable(arguments))
        chosen.began = began
        options.refuse_unknown(unknown, chosen.parser)
        return chosen.command(chosen)
    except (FloatingPointError, RankLostError) as error:
        return _complain(error, 1)
    except (ValueError, OSError) as error:
        return _complain(error, 2)
    except KeyboardInterrupt:
        return 130
    finally:
        logger.removeHandler(notices)
        leave()


class _Notices(logging.Handler):
    """What the library has to say, on stderr, above a progress bar if there is one."""

    def __init__(self):
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        words = options.in_options(record.getMessage())
        tqdm.write(f"fastgan: {words}", file=sys.stderr)


def _complain(error: Exception, status: int) -> int:
    line = options.in_options(" ".join(str(error).split()))
    print(f"fastgan: {line or type(error).__name__}", file=sys.stderr)
    return status


# --- train ---------------------------------------------------------------------------------------


class _Console(Console):
    """Says the preset first, once nothing is left that could be refused."""

    name = "Console"
    preset: str | None = None

    def start(self, trainer: Trainer) -> None:
        if self.preset is not None:
            self.say(self.preset)
        super().start(trainer)


class _LossPlot(Callback):
    """Draws loss.png at every save."""

    def save(self, trainer: Trainer, directory: Path) -> None:
        if trainer.history:
            trainer.plot(directory / pictures.LOSSES)


def _train(chosen: argparse.Namespace) -> int:
    given = options.given(chosen)
    leads = World.here().leads
    mode = "none" if chosen.quiet or not leads else given.get("console", "auto")
    # With --json stdout belongs to the summary.
    console = _Console(mode, sys.stderr if chosen.json else None)
    callbacks = [console, _LossPlot(), *watching.callbacks(chosen)]
    saved = None
    if chosen.resume is not None:
        _check_resumed(chosen, given)
        saved = table.kept_out(chosen.resume)
    if chosen.until is not None and chosen.held_out is None and saved is None:
        callbacks.append(Until(chosen.until))
    callbacks = tuple(callbacks)
    if chosen.resume is None:
        run = _new_run(chosen, given, callbacks, console)
    else:
        run = _resumed_run(chosen, given, callbacks, saved)
    before = run.step
    summary = run.fit()
    run.close()
    if not leads:
        return 0
    summary["wall_seconds"] = round(time.perf_counter() - chosen.began, 3)
    summary["step_seconds"] = round((summary["ms_per_step"] or 0) * (run.step - before) / 1e3, 3)
    share = summary["step_seconds"] / summary["wall_seconds"]
    console.say(f"wall time {summary['wall_seconds']:.1f} s, {share:.1%} of it in steps")
    seen = [f for f in (pictures.SAMPLES, pictures.LOSSES) if (run.out / f).exists()]
    console.say(f"look at {' and '.join(str(run.out / f) for f in seen) or run.out}")
    console.say(f"all of it on one page: fastgan report {shlex.quote(str(run.out))}")
    if chosen.json:
        print(json.dumps(summary), flush=True)
    return 0


def _new_run(
    chosen: argparse.Namespace, given: dict[str, Any], callbacks: tuple, console: _Console
) -> Trainer:
    if chosen.data_changed:
        raise ConfigError("--data-changed goes with --resume")
    if chosen.start_from is not None:
        return _tuned_run(chosen, given, callbacks)
    config, preset = options.config_of(chosen, given)
    if chosen.name is not None:
        if "out" in given:
            raise ConfigError("--out and --name both say where the run goes; give one of them")
        config = config.with_(out=Path("runs", chosen.name))
    elif config.out is None:
        stem = Path(str(config.data)).stem or "run"
        config = config.with_(out=Path("runs", stem), if_exists="count")
    if preset is not None:
        plain = config.to_dict()
        shown = [f"{k}={json.dumps(plain[k])}" for k in config_room.PRESETS[preset].values]
        console.preset = f"preset {preset}: {', '.join(shown)}"
    data = None
    if chosen.held_out is not None:
        data, rule = table.held_out(chosen, config)
        callbacks += rule
    return Trainer(None, None, data, config, callbacks=callbacks)


def _tuned_run(chosen: argparse.Namespace, given: dict[str, Any], callbacks: tuple) -> Trainer:
    for name in ("preset", "config"):
        if getattr(chosen, name) is not None:
            raise ConfigError(
                f"--{name} is given beside --start-from, which takes the other run's settings; "
                "give single options"
            )
    if chosen.name is not None:
        given["out"] = Path("runs", chosen.name)
    elif "out" not in given:
        run = checkpoint.find(chosen.start_from).parent.name
        given |= {"out": Path("runs", f"{run}-tuned"), "if_exists": "count"}
    data = given.pop("data", None)
    if chosen.held_out is not None:
        raise ConfigError("--held-out begins a run of its own; leave it or --start-from out")
    return Trainer.from_checkpoint(chosen.start_from, data=data, callbacks=callbacks, **given)


def _check_resumed(chosen: argparse.Namespace, given: dict[str, Any]) -> None:
    for name in ("preset", "config", "name", "start_from"):
        if getattr(chosen, name) is not None:
            name = name.replace("_", "-")
            raise ConfigError(f"--{name} begins a new run; --resume goes on with its own settings")
    if "out" in given:
        raise ConfigError("--out begins a new run; --resume goes on in the run's own directory")


def _resumed_run(
    chosen: argparse.Namespace,
    given: dict[str, Any],
    callbacks: tuple,
    saved: dict[str, Any] | None,
) -> Trainer:
    data = given.pop("data", None)
    if chosen.held_out is not None or saved is not None:
        config = resuming.config_of(*resuming.read(chosen.resume), given)
        config = config if data is None else config.with_(data=data)
        if config.data is not None:  # else the resume says what to pass
            data, rule = table.held_out(chosen, config, saved)
            callbacks += rule
    return Trainer.resume(
        chosen.resume, data=data, callbacks=callbacks, data_changed=chosen.data_changed, **given
    )


# --- settings, info, bench -----------------------------------------------------------------------


def _settings(chosen: argparse.Namespace) -> int:
    print(config_room.table(), end="")
    return 0


def _info(chosen: argparse.Namespace) -> int:
    # By its module: the package's name `info` is the function.
    from fastgan.info import info, report

    facts = info()
    print(json.dumps(facts) if chosen.json else report(facts))
    return 0


def _bench(arguments: list[str]) -> int:
    places = (Path.cwd(), Path(fastgan.__file__).resolve().parents[1])
    files = [place / "benchmarks" / "bench.py" for place in places]
    file = next((f for f in files if f.is_file()), None)
    if file is None:
        error = ConfigError(
            "bench runs benchmarks/bench.py of a source checkout, and there is none in "
            f"{' or '.join(map(str, places))}; change into a checkout of fastgan"
        )
        return _complain(error, 2)
    spec = importlib.util.spec_from_file_location("bench", file)
    bench = importlib.util.module_from_spec(spec)
    # Dataclasses and pickle look a module up by its name.
    sys.modules["bench"] = bench
    spec.loader.exec_module(bench)
    if not hasattr(bench, "main"):
        return _complain(ConfigError(f"{file} is not fastgan's benchmark: it has no main()"), 2)
    return bench.main(arguments)


# --- options -------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = options.Parser(
        prog="fastgan",
        description="Train generative adversarial networks, fast.",
        epilog="Start with: fastgan train",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fastgan {fastgan.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        allow_abbrev=False,
        help="train a pair of networks",
        description="Train a pair of networks that fastgan ships, and leave samples.png, loss.png, "
        "log.jsonl, config.json, checkpoint.pt, generator.pth and discriminator.pth in the run's "
        "directory. Without options: the reference pair on the bundled digits, about a minute on "
        "two cores. A preset says what suits a pair; without --preset it is the one of the "
        "model, --model or that of the file (points for a density, ctgan for a table): "
        + ", ".join(f"{m.preset} for {name}" for name, m in models.MODELS.items())
        + ".",
    )
    train.set_defaults(command=_train, parser=train)
    add = train.add_argument_group("this run").add_argument
    options.start(add)
    add("--resume", metavar="RUN", help="continue a run, from its directory or a checkpoint in it")
    add(
        "--start-from",
        metavar="RUN",
        help="begin a new run with the weights and settings of another; options win over those",
    )
    add(
        "--held-out",
        metavar="ROWS",
        help="of a run on a table: a share of its rows, or a file of others, that is not learned "
        f"and that --until compares with, by default by {table.PLATEAU!r}; a run that goes on has "
        "its own share, and is given a file again",
    )
    add(
        "--data-changed",
        action="store_true",
        help="with --resume: go on although the data is not what the run was trained on",
    )
    add("--name", help="the run's directory is runs/NAME (default: after the data, counted up)")
    add("--json", action="store_true", help="end with one line of JSON on stdout; the rest: stderr")
    add("--quiet", action="store_true", help="say nothing but errors")
    options.add(train)

    for command in (sweep, sample, evaluate, report, export, demo):
        command.add(commands)

    settings = commands.add_parser("settings", help="print the table of all settings, in Markdown")
    settings.set_defaults(command=_settings, parser=settings)

    info = commands.add_parser("info", help="say what this installation has and what it lacks")
    info.set_defaults(command=_info, parser=info)
    info.add_argument("--json", action="store_true", help="print the facts as one line of JSON")

    # Here for the list of commands; `main` knows what to do with them.
    commands.add_parser(
        "table",
        add_help=False,
        help="train on a table: table FILE ...; sample it: table sample RUN",
    )
    commands.add_parser("bench", add_help=False, help="time the engines, in a checkout")
    return parser


if __name__ == "__main__":
    sys.exit(main())
