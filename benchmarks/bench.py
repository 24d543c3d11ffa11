"""Time fastgan's engines against the best programs for the same job: python benchmarks/bench.py.

See benchmarks/README.md for what is compared, how, and how to read the result.
"""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Found however this file was reached: run, imported by a test, or by `fastgan bench`.
for place in (HERE.parent, HERE):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))

import gpu  # noqa: E402
import harness  # noqa: E402
import machine  # noqa: E402
import plans  # noqa: E402
import report  # noqa: E402
from peers import CATALOGUE, CONV, select  # noqa: E402

GROUPS = {"grid": plans.GRID, "sweep": plans.SWEEP, "dcgan": plans.DCGAN, "conv": plans.CONV}
PATIENCE = 120.0  # with a GPU: a kernel that never ends must not take the others' results with it


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark.

    Returns 0; 1 if a peer failed, its losses were not finite, or the run was interrupted; 3 for a
    device that is not there.
    """
    started = time.monotonic()
    parser = _parser()
    options = parser.parse_args(argv)
    if options.list:
        print(_catalogue())
        return 0
    try:
        chosen = _plans(options)
        named = options.peers or (CONV if options.conv else None)
        entries = select(named, grid=options.grid or options.sweep, device=options.device)
    except ValueError as error:
        parser.error(str(error))
    threads = options.threads or len(machine.usable_cpus())
    if not 1 <= threads <= len(machine.usable_cpus()):
        parser.error(f"--threads {threads}: this process may use {len(machine.usable_cpus())} cpus")
    if options.seconds is not None and options.seconds <= 0:
        parser.error(f"--seconds {options.seconds}: expected a positive number")
    for name in ("limit", "patience"):
        if getattr(options, name) is not None and getattr(options, name) <= 0:
            parser.error(f"--{name} {getattr(options, name)}: expected a positive number")
    if options.picture and not _only_races(options):
        parser.error(
            "--picture draws races; it does not go with --overhead, --contended, --profile"
        )
    if options.picture:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            parser.error("--picture needs matplotlib: pip install matplotlib")

    say = functools.partial(print, file=sys.stderr, flush=True)
    on_gpu = options.device == "cuda"
    card = None
    if on_gpu:
        try:
            card = gpu.facts(options.card)
        except machine.Missing as reason:
            say(f"SKIPPED: --device cuda: {reason}")
            return 3
    topic = options.topic or _topic(options)
    command = shlex.join(["bench.py", *(sys.argv[1:] if argv is None else argv)])
    record = {"schema": 1, "topic": topic, "command": command, "machine": machine.facts(threads)}
    if on_gpu:
        record["machine"]["gpu"] = card
    record["peers"] = {
        entry.name: {"precision": entry.precision, "about": entry.about} for entry in entries
    }
    record["before"] = harness.surroundings(options.device)
    with (
        _sigterm_like_ctrl_c(),
        harness.Field(
            entries,
            threads,
            device=options.device,
            patience=options.patience or (PATIENCE if on_gpu else None),
            inline=options.inline,
            say=say,
        ) as field,
    ):
        done = 0
        try:
            for plan in chosen:
                if options.limit and time.monotonic() - started > options.limit:
                    say("--limit is over")
                    break
                say(f"{plan.title} ({done + 1} of {len(chosen)})")
                if _only_races(options):
                    many = options.grid or options.sweep
                    usual = 0.7 if options.conv else 2.0 if many else 4.0
                    results = field.race(plan, options.seconds or usual)
                    _add(record, "races", plan, results)
                    record["races"][-1]["ratios"] = harness.ratios(results, entries)
                    record["races"][-1] |= harness.gpu_state(options.device)
                if options.overhead:
                    _add(record, "overhead", plan, field.overhead(plan))
                if options.contended:
                    _add(record, "contended", plan, field.contended(plan))
                if options.profile:
                    _add(record, "profile", plan, field.profile(plan))
                done += 1
                if field.interrupted:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            say("interrupted: what has been measured is kept")
        if done < len(chosen):
            record["left_out"] = [plan.title for plan in chosen[done:]]
    record["after"] = harness.surroundings(options.device)

    # Before anything is made of it: what took minutes must not be lost to a table.
    if not options.no_record:
        say(f"recorded in {report.save(record, Path(options.out), topic)}")
    print(json.dumps(record) if options.json else report.render(record), flush=True)
    if options.picture and record.get("races"):
        report.picture(record, Path(options.picture))
        say(f"drawn in {options.picture}")
    failed = [
        name
        for race in record.get("races", [])
        for name, result in race["results"].items()
        if "error" in result or result.get("missing", "").startswith(("failed", "its process"))
    ]
    return 1 if failed or done < len(chosen) and not options.limit else 0


@contextmanager
def _sigterm_like_ctrl_c():
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _add(record: dict, key: str, plan: plans.Plan, results: dict) -> None:
    record.setdefault(key, []).append({"plan": plan.to_json(), "results": results})


def _only_races(options) -> bool:
    return not (options.overhead or options.contended or options.profile)


def _plans(options) -> list[plans.Plan]:
    try:
        batches = tuple(int(word) for word in options.batch.split(","))
    except ValueError:
        raise ValueError(f"--batch {options.batch!r}: expected numbers like 64,256") from None
    chosen = [plans.Plan.parse(text) for text in options.plan or []]
    for name, more in GROUPS.items():
        if getattr(options, name):
            chosen += more
    chosen = chosen or plans.pair(batches)
    words = [word.strip().lower() for word in options.only.split(",")]
    left = [p for p in chosen if any(word in p.title.lower() for word in words)]
    if not left:
        titles = "; ".join(p.title for p in chosen)
        raise ValueError(f"--only {options.only!r} is part of no plan's title: {titles}")
    return left


def _topic(options) -> str:
    if not _only_races(options):
        kinds = [k for k in ("overhead", "contended", "profile") if getattr(options, k)]
        return " and ".join(kinds)
    kinds = [k for k in GROUPS if getattr(options, k)]
    return " and ".join(kinds) or ("plans" if options.plan else "pair")


def _catalogue() -> str:
    rows = [
        [e.name, f"peers/{e.file}.py", ", ".join(e.devices), e.precision, e.about]
        for e in CATALOGUE.values()
    ]
    listed = [
        [option, p.title, report.describe(p.to_json())]
        for option, group in (
            ("", plans.pair()),
            ("--grid", plans.GRID),
            ("--sweep", plans.SWEEP),
            ("--dcgan", plans.DCGAN),
            ("--conv", plans.CONV),
        )
        for p in group
    ]
    return "\n\n".join(
        [
            report.table(["peer", "file", "device", "precision", "what it is"], rows, numbers=5),
            report.table(["option", "plan", "networks"], listed, numbers=3),
        ]
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench.py",
        description="Time fastgan's engines and their peers in turns, and record the result.",
    )
    what = parser.add_argument_group("what to time")
    what.add_argument(
        "--batch",
        default="64,256",
        help="batch sizes of the reference pair (default %(default)s)",
    )
    what.add_argument("--grid", action="store_true", help=f"{len(plans.GRID)} other plans instead")
    what.add_argument(
        "--sweep",
        action="store_true",
        help=f"{len(plans.SWEEP)} plans for a GPU: batch 64 to 8192, hidden 256 to 2048",
    )
    what.add_argument(
        "--dcgan", action="store_true", help="DCGAN 64x64, batch 128, without and with R1"
    )
    what.add_argument(
        "--conv",
        action="store_true",
        help=f"{len(plans.CONV)} plans of convolutions: DCGAN 32 and 64 and an SN-ResNet, plain, "
        "with R1 and as WGAN-GP",
    )
    what.add_argument(
        "--only",
        default="",
        metavar="TEXT,...",
        help='of these plans those with one of these in their titles, such as "dcgan 64"',
    )
    what.add_argument(
        "--plan",
        action="append",
        metavar="KEY=VALUE,...",
        help="a plan of your own (repeatable), such as "
        "hidden=512,depth=3,image=3x32x32,batchnorm=g,dropout=0.3,latent=128,batch=128, or "
        "network=dcgan,hidden=64,image=3x64x64,penalty=r1,batch=128",
    )
    what.add_argument(
        "--peers",
        help="names or files of peers, comma-separated (see --list); default all, and with --grid "
        "all that could be the best",
    )
    what.add_argument("--list", action="store_true", help="list peers and plans, and stop")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="where the peers run; without a GPU, cuda ends with exit status 3 (default cpu)",
    )
    how.add_argument(
        "--card",
        type=Path,
        metavar="FILE",
        help="what was measured of the card some minutes ago; measured and written if not there",
    )
    how.add_argument("--threads", type=int, help="cores for every peer (default: all)")
    how.add_argument(
        "--seconds",
        type=float,
        help="timed seconds for each peer and plan (default 4; 2 with --grid and --sweep; 0.7, "
        "which are at least three turns of three steps, with --conv)",
    )
    how.add_argument(
        "--limit", type=float, metavar="S", help="begin no further plan after so many seconds"
    )
    how.add_argument(
        "--patience",
        type=float,
        metavar="S",
        help="stop a peer that takes longer to set up or to answer (default: none on the cpu, "
        f"{PATIENCE:.0f} on a GPU)",
    )
    how.add_argument(
        "--inline",
        action="store_true",
        help="all peers in this process, for debugging: their thread pools disturb each other",
    )
    other = parser.add_argument_group("other questions, instead of the race")
    other.add_argument(
        "--overhead", action="store_true", help="cost of a call: run(1) against run(1000)/1000"
    )
    other.add_argument(
        "--contended", action="store_true", help="slowdown while another process burns a core"
    )
    other.add_argument(
        "--profile", action="store_true", help="phases of a step, where the engine knows them"
    )
    where = parser.add_argument_group("where to")
    where.add_argument(
        "--out",
        default=str(HERE / "records"),
        help="folder of records (default benchmarks/records)",
    )
    where.add_argument("--topic", help="the record's name, after date and machine")
    where.add_argument("--no-record", action="store_true", help="write no record")
    where.add_argument("--json", action="store_true", help="print the record instead of tables")
    where.add_argument("--picture", metavar="PNG", help="draw the race as bars")
    return parser


if __name__ == "__main__":
    sys.exit(main())
