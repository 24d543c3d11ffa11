"""The command line: fastgan train, sample, info, bench."""

import argparse
import gc
import importlib.util
import inspect
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import fastgan
from fastgan import (
    _start,
    data,
    engines,
    losses,
    problem,
    sampling,
    trainer,
)
from fastgan.engines.base import PRECISIONS
from fastgan.run import checkpoint, pictures

DEFAULTS: dict[str, Any] = {
    "data": "digits",
    "batch_size": 64,
    "latent_dim": 100,
    "loss": "non-saturating",
    "d_steps": 1,
    "lr": [1e-3, 5e-4],
    "betas": [0.5, 0.999],
    "optimizer": "adam",
    "weight_decay": 0.0,
    "eps": 1e-8,
    "precision": "fp32",
    "engine": "auto",
    "device": None,
    "seed": 0,
    "ema": 0.9995,
    "label_smoothing": 0.0,
    "penalty": None,
    "penalty_weight": None,
    "penalty_every": None,
    "log_every": 100,
    "checkpoint_every": None,
    "keep": 2,
}
"""What an option that was not given means; None in the parser tells that it was not.

The learning rates, the average and the number of steps are those that gave the best digits of half
a dozen tried on the bundled set, within about a minute of the eager engine. `Trainer`, which takes
any pair, has more cautious rates and keeps no average; with this pair, after 10 epochs of
Fashion-MNIST, its Frechet distance (as in benchmarks/agreement.py) is 37, and that of these is 11.
"""
STEPS = 20_000
RESUMABLE = ("epochs", "steps", "seconds", "device", "engine", "threads")
"""Options that can accompany --resume; the others belong to the run."""
SECONDS_BETWEEN_LINES = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0: done. 1: training broke down (losses not finite). 2: wrong input, said in one line on stderr.
    130, 143: stopped by Ctrl-C or SIGTERM, with the run saved.
    """
    began, start_seconds = time.perf_counter(), 0.0
    if arguments is None:
        # As a command, it began with the program.
        start_seconds = began - _start.BEGAN
        # What is imported stays, so that the collector need not visit it, at the exit least of all.
        gc.freeze()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["bench"]:
        # Before the parser sees them: every option that follows, --help too, is the benchmark's.
        return _bench(arguments[1:])
    options = _parser().parse_args(arguments)
    options.began, options.start_seconds = began - start_seconds, start_seconds
    notices = _Notices()
    logger = logging.getLogger("fastgan")
    logger.addHandler(notices)
    try:
        return options.command(options)
    except FloatingPointError as error:
        return _complain(error, 1)
    except (ValueError, OSError) as error:
        return _complain(error, 2)
    except KeyboardInterrupt:
        return 130
    finally:
        logger.removeHandler(notices)


class _Notices(logging.Handler):
    """What the library has to say, on stderr, above a progress bar if there is one."""

    def __init__(self):
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(f"fastgan: {record.getMessage()}", file=sys.stderr)


def _complain(error: Exception, status: int) -> int:
    line = " ".join(str(error).split())
    print(f"fastgan: {line or type(error).__name__}", file=sys.stderr)
    return status


# --- train ---------------------------------------------------------------------------------------


def _train(options: argparse.Namespace) -> int:
    console = _Console(options)
    if options.threads is not None:
        if options.threads < 1:
            raise ValueError(f"--threads is {options.threads}; expected at least 1")
        torch.set_num_threads(options.threads)
    goal = {name: getattr(options, name) for name in ("epochs", "steps", "seconds")}
    for name, limit in goal.items():
        if limit is not None and not limit > 0:
            raise ValueError(f"--{name} is {limit}; expected more than 0")
    if options.resume is None:
        run = _new_run(options)
        console.say(_rates(run))
        if all(limit is None for limit in goal.values()):
            goal["steps"] = STEPS
    else:
        run = _resumed_run(options)
        console.say(f"continuing {run.out} at step {run.step}")
    console.say(f"{run.data.name}: {run.data.origin}")
    console.say(run.explanation)
    console.say(f"writing to {run.out} (images to look at: {run.out / 'samples.png'})")
    before = run.step
    with console:
        summary = run.fit(**goal, report=console.report)
    run.close()
    pictures.loss_plot(run.history, run.out / pictures.LOSSES)
    if summary["ms_per_step"] is None:
        console.say(f"nothing left to do: give --steps above {run.step} to go on")
    console.say(
        f"done: {summary['steps']} steps in {summary['seconds']:.1f} s; "
        f"look at {run.out / 'samples.png'} and {run.out / 'loss.png'}"
    )
    summary["wall_seconds"] = round(time.perf_counter() - options.began, 3)
    summary["start_seconds"] = round(options.start_seconds, 3)
    summary["step_seconds"] = round((summary["ms_per_step"] or 0) * (run.step - before) / 1e3, 3)
    wall = summary["wall_seconds"]
    steps, start = summary["step_seconds"] / wall, summary["start_seconds"] / wall
    console.say(
        f"wall time {wall:.1f} s: {steps:.1%} in steps, {start:.1%} in starting Python and "
        f"PyTorch, {1 - steps - start:.1%} in all else"
    )
    if options.json:
        print(json.dumps(summary), flush=True)
    return 0


def _new_run(options: argparse.Namespace) -> trainer.Trainer:
    settings = {
        name: default if getattr(options, name) is None else getattr(options, name)
        for name, default in DEFAULTS.items()
    }
    lr = settings.pop("lr")
    if len(lr) > 2:
        raise ValueError("--lr takes one number, or two: the generator's and the discriminator's")
    source = {"source": settings.pop("data")}
    for name in ("image_size", "channels"):
        if getattr(options, name) is not None:
            source[name] = getattr(options, name)
    ema = settings.pop("ema")
    return trainer.Trainer(
        None,
        None,
        source,
        lr=lr[0] if len(lr) == 1 else tuple(lr),
        ema=ema or None,
        out=_directory(options, source["source"]),
        **settings,
    )


def _rates(run: trainer.Trainer) -> str:
    """What `fastgan train` sets otherwise than `Trainer` does, in a line."""
    lr = inspect.signature(trainer.Trainer).parameters["lr"].default
    g, d = run.config["lr"]
    average = "none" if run.config["ema"] is None else f"decay {run.config['ema']:g}"
    return (
        f"learning rates {g:g} (generator) and {d:g} (discriminator), running average: {average} "
        f"(fastgan.Trainer's defaults: {lr:g} for both, none)"
    )


def _directory(options: argparse.Namespace, source: str) -> Path:
    if options.out is not None and options.name is not None:
        raise ValueError("--out and --name both say where the run goes; give one of them")
    if options.out is not None:
        return Path(options.out)
    if options.name is not None:
        return Path("runs", options.name)
    stem = Path(source).stem or "run"
    free = (Path("runs", f"{stem}-{i}" if i > 1 else stem) for i in range(1, sys.maxsize))
    return next(path for path in free if not path.exists())


def _resumed_run(options: argparse.Namespace) -> trainer.Trainer:
    for name in (*DEFAULTS, "image_size", "channels", "name", "out"):
        if name not in RESUMABLE and getattr(options, name) is not None:
            raise ValueError(
                f"--{name.replace('_', '-')} cannot be changed by --resume; the run keeps its own"
            )
    if options.threads is None:
        # The same number of threads gives the same bits.
        torch.set_num_threads(checkpoint.load(options.resume)["threads"])
    return trainer.Trainer.resume(options.resume, device=options.device, engine=options.engine)


class _Console:
    """What a person sees meanwhile: a bar on a terminal, else a line now and then."""

    def __init__(self, options: argparse.Namespace):
        """With --json stdout belongs to the summary; with --quiet nothing is said."""
        self.stream = sys.stderr if options.json else sys.stdout
        self.quiet = options.quiet
        self.bar = None
        self.said = time.monotonic()

    def say(self, line: str) -> None:
        if not self.quiet:
            print(line, file=self.stream, flush=True)

    def report(self, state: trainer.State) -> None:
        if self.quiet:
            return
        if sys.stderr.isatty():
            self._move_bar(state)
        elif state.logged and time.monotonic() - self.said >= SECONDS_BETWEEN_LINES:
            self.said = time.monotonic()
            left = ""
            if state.target is not None:
                seconds = (state.target - state.step) * state.ms_per_step / 1e3
                left = f"/{state.target}, {seconds:.0f} s left"
            self.say(
                f"step {state.step}{left}, epoch {state.epoch}, D loss {state.d_loss:.4f}, "
                f"G loss {state.g_loss:.4f}, {state.ms_per_step:.2f} ms/step"
            )

    def _move_bar(self, state: trainer.State) -> None:
        if self.bar is None:
            self.bar = tqdm(total=state.target, unit="step", file=sys.stderr, dynamic_ncols=True)
            self.bar.initial = self.bar.n = state.step
            self.bar.last_print_n = state.step
        if state.logged:
            losses_now = {"D": f"{state.d_loss:.3f}", "G": f"{state.g_loss:.3f}"}
            self.bar.set_postfix(losses_now, refresh=False)
        self.bar.update(state.step - self.bar.n)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()


# --- sample, info, bench -------------------------------------------------------------------------


def _sample(options: argparse.Namespace) -> int:
    generator, config = sampling.load_generator(options.run)
    device = problem.choose_device(options.device)
    latent_dim = config["latent_dim"]
    shape = (latent_dim,) if isinstance(latent_dim, int) else tuple(latent_dim)
    seed = config["seed"] if options.seed is None else options.seed
    images = sampling.sample(generator.to(device), options.n, shape, seed, device)
    out = Path(options.out or checkpoint.find(options.run).with_name("grid.png"))
    if not out.parent.is_dir():
        raise ValueError(f"--out: there is no directory {out.parent}")
    pictures.grid(images, out, options.columns)
    print(out)
    return 0


def _info(options: argparse.Namespace) -> int:
    # By its module: the package's name `info` is the function.
    from fastgan.info import info, report

    facts = info()
    print(json.dumps(facts) if options.json else report(facts))
    return 0


def _bench(arguments: list[str]) -> int:
    places = (Path.cwd(), Path(fastgan.__file__).resolve().parents[1])
    files = [place / "benchmarks" / "bench.py" for place in places]
    file = next((f for f in files if f.is_file()), None)
    if file is None:
        error = ValueError(
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
        return _complain(ValueError(f"{file} is not fastgan's benchmark: it has no main()"), 2)
    return bench.main(arguments)


# --- options -------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastgan",
        description="Train generative adversarial networks, fast.",
        epilog="Start with: fastgan train",
    )
    parser.add_argument("--version", action="version", version=f"fastgan {fastgan.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_train(commands)

    sample = commands.add_parser("sample", help="draw images from a trained generator")
    sample.set_defaults(command=_sample)
    sample.add_argument("run", metavar="RUN", help="directory of a run, or a checkpoint in it")
    sample.add_argument("--n", type=int, default=64, help="number of images (default: 64)")
    sample.add_argument("--columns", type=int, help="images in a row (default: a square)")
    sample.add_argument("--out", metavar="FILE", help="PNG to write (default: RUN/grid.png)")
    sample.add_argument(
        "--seed", type=int, help="seed of the latents (default: the run's, as in its samples.png)"
    )
    sample.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")

    info = commands.add_parser("info", help="say what this installation has and what it lacks")
    info.set_defaults(command=_info)
    info.add_argument("--json", action="store_true", help="print the facts as one line of JSON")

    # Here for the list of commands; `main` hands the arguments on unread.
    bench = commands.add_parser("bench", add_help=False, help="time the engines, in a checkout")
    bench.set_defaults(command=lambda _: _bench([]))
    return parser


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train the reference pair of networks",
        description="Train the reference pair of networks on images and leave samples.png, "
        "loss.png, log.jsonl, config.json, checkpoint.pt, generator.pth and discriminator.pth in "
        "the run's directory. Without options: the bundled digits, about a minute on two cores. "
        "The learning rates and the running average suit this pair; fastgan.Trainer, made for any "
        "pair, has its own defaults (2e-4 for both networks, no average).",
    )
    train.set_defaults(command=_train)

    def default(name: str) -> str:
        value = DEFAULTS[name]
        return f"(default: {' '.join(map(str, value)) if isinstance(value, list) else value})"

    add = train.add_argument_group("data and length").add_argument
    add(
        "--data",
        metavar="NAME|PATH",
        help=f"{', '.join(data.NAMES)}, or a folder or zip of images {default('data')}",
    )
    add("--image-size", type=int, metavar="PIXELS", help="crop and resize to squares of this side")
    add("--channels", type=int, choices=(1, 3), help="1: grey, 3: RGB (default: as the images are)")
    add("--epochs", type=int, help="stop after this many passes over the data")
    add(
        "--steps",
        type=int,
        help=f"stop after this many steps (default: {STEPS}, if no other limit is given)",
    )
    add("--seconds", type=float, help="stop after this much training time; the first limit counts")

    add = train.add_argument_group("training").add_argument
    add("--batch-size", type=int, metavar="N", help=f"images in a batch {default('batch_size')}")
    add("--latent-dim", type=int, metavar="N", help=f"latent vector length {default('latent_dim')}")
    add("--loss", choices=tuple(losses.GAMES), help=f"the game {default('loss')}")
    add("--d-steps", type=int, metavar="N", help=f"D updates in a step {default('d_steps')}")
    add(
        "--lr",
        type=float,
        nargs="+",
        metavar="RATE",
        help=f"Adam's learning rate, or two: generator's and discriminator's {default('lr')}",
    )
    add("--betas", type=float, nargs=2, metavar="B", help=f"Adam's decays {default('betas')}")
    add(
        "--optimizer",
        choices=tuple(problem.OPTIMIZERS),
        help=f"of both networks {default('optimizer')}",
    )
    add(
        "--weight-decay",
        type=float,
        metavar="W",
        help="an L2 penalty with adam, decoupled from the gradient with adamw "
        f"{default('weight_decay')}",
    )
    add("--eps", type=float, help=f"what Adam adds to its denominator {default('eps')}")
    add(
        "--ema",
        type=float,
        metavar="DECAY",
        help="decay of the running average of the generator's weights, which the pictures come "
        f"from; 0: none {default('ema')}",
    )
    add(
        "--label-smoothing",
        type=float,
        metavar="S",
        help=f"label real images 1 - S (one-sided smoothing) {default('label_smoothing')}",
    )
    add(
        "--penalty",
        choices=tuple(losses.PENALTIES),
        help="on the slope of the discriminator (default: none)",
    )
    add("--penalty-weight", type=float, metavar="W", help="of the penalty (default: 10)")
    add(
        "--penalty-every",
        type=int,
        metavar="K",
        help="D updates from one penalty to the next, which is K times as heavy (default: 1)",
    )

    add = train.add_argument_group("machine").add_argument
    add("--precision", choices=PRECISIONS, help=f"of the products {default('precision')}")
    add("--engine", choices=("auto", *engines.ORDER), help=f"how steps run {default('engine')}")
    add("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    add("--seed", type=int, help=f"source of all randomness {default('seed')}")

    add = train.add_argument_group("run").add_argument
    add("--name", help="the run's directory is runs/NAME (default: after the data)")
    add("--out", metavar="DIR", help="the run's directory, anywhere")
    add("--resume", metavar="RUN", help="continue a run, from its directory or a checkpoint in it")
    add("--log-every", type=int, metavar="STEPS", help=f"between log lines {default('log_every')}")
    add(
        "--checkpoint-every",
        type=int,
        metavar="STEPS",
        help="between checkpoints (default: one a minute; there is always one at the end)",
    )
    add("--keep", type=int, metavar="N", help=f"checkpoints that stay {default('keep')}")
    add("--json", action="store_true", help="end with one line of JSON on stdout; the rest: stderr")
    add("--quiet", action="store_true", help="say nothing but errors")


if __name__ == "__main__":
    sys.exit(main())
