"""Results as data, as tables and as one picture."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path

import harness
import machine
from peers import CATALOGUE


def save(record: dict, folder: Path, topic: str) -> Path:
    """Write a record as ``<date>-<machine>-<topic>.json``; never over an older one."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = record["machine"]
    date = datetime.datetime.fromisoformat(facts["date"]).strftime("%Y-%m-%d")
    stem = f"{date}-{slug(facts['cpu'])}-{facts['threads']}t-{slug(topic)}"
    for number in range(1, 1000):
        path = folder / (f"{stem}.json" if number == 1 else f"{stem}-{number}.json")
        try:
            with open(path, "x") as file:
                json.dump(record, file, indent=1)
                file.write("\n")
            return path
        except FileExistsError:
            continue
    raise FileExistsError(f"{folder} already has a thousand records called {stem}")


def slug(text: str) -> str:
    text = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*", "", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def render(record: dict) -> str:
    """The whole record as markdown."""
    parts = [_machine(record)]
    parts += [_race(race, record["machine"]) for race in record.get("races", [])]
    if len(record.get("races", [])) > 1:
        parts.append(_grid(record["races"], record["machine"]))
    for key, draw in (("overhead", _overhead), ("contended", _contended), ("profile", _profile)):
        parts += [draw(item, record["machine"]) for item in record.get(key, [])]
    return "\n\n".join(parts) + "\n"


def table(heads: list[str], rows: list[list[str]], numbers: int = 1) -> str:
    """A markdown table; the columns from ``numbers`` on are set right."""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]

    def line(cells):
        return (
            "| "
            + " | ".join(
                cell.rjust(width) if i >= numbers else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            )
            + " |"
        )

    rule = "|" + "|".join(
        "-" * (width + 1) + (":" if i >= numbers else "-") for i, width in enumerate(widths)
    )
    return "\n".join([line(heads), rule + "|", *map(line, rows)])


def _machine(record: dict) -> str:
    facts, before, after = record["machine"], record["before"], record["after"]
    versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items() if v)
    absent = [k for k, v in facts["versions"].items() if v is None]

    def trip(when):
        return f"{when['roundtrip_ns']:.0f}" if "roundtrip_ns" in when else "unknown"

    peaks = (
        "; ".join(
            f"{precision} "
            + ", ".join(f"{isa} {value['all']:.0f}" for isa, value in by_isa.items())
            for precision, by_isa in facts["peak"].items()
            if by_isa
        )
        or "unknown"
    )
    lines = [
        f"# {record['topic']}, {facts['date']}",
        "",
        f"- {facts['cpu']} ({facts['arch']}), {facts['cores']} cores, {facts['threads']} threads "
        f"on cpus {', '.join(map(str, facts['cpus']))}; {facts['os']}",
        f"- peak of a core with all {facts['threads']} busy, GFLOP/s: {peaks}",
        f"- core round trip before / after: {trip(before)} / {trip(after)} ns; "
        f"load before / after: {_load(before)} / {_load(after)}",
        f"- {versions}" + (f"; not installed: {', '.join(absent)}" if absent else ""),
        f"- source {facts['git'] or 'not in git'}; command: {record['command']}",
    ]
    lines += [f"- {what} not measured: {why}" for what, why in facts["missing"].items()]
    return "\n".join(lines)


def _load(when: dict) -> str:
    return f"{when['load'][0]:.2f}" if when.get("load") else "unknown"


def _race(race: dict, facts: dict) -> str:
    plan, results, ratios = race["plan"], race["results"], race["ratios"]
    ours = [name for name in ("fused", "fused-bf16") if name in ratios] or list(ratios)[:2]
    heads = ["peer", "precision", "best ms", "median", "IQR", "GFLOP/s a core", "of peak", "cores"]
    heads += [f"x {name}" for name in ours] + ["D, G loss"]
    rows, notes, aside = [], [], []
    timed = {name: r for name, r in results.items() if "median" in r}
    for name, r in sorted(timed.items(), key=lambda item: item[1]["median"]):
        precision = CATALOGUE[name].precision
        rate = plan["flops"] / r["best"] / 1e9 / facts["threads"]
        peak = machine.peak_gflops(facts["peak"], precision)
        rows.append(
            [
                name,
                precision,
                f"{r['best'] * 1e3:.3f}",
                f"{r['median'] * 1e3:.3f}",
                f"{(r['q3'] - r['q1']) * 1e3:.3f}",
                f"{rate:.0f}",
                f"{rate / peak:.0%}" if peak else "?",
                f"{r['cores_used']:.2f}",
                *[f"{ratios[o][name]['median']:.2f}" for o in ours],
                f"{r['d_loss']:.2f}, {r['g_loss']:.2f}" if "d_loss" in r else "FAILED",
            ]
        )
        if "error" in r:
            notes.append(f"- {name}: {r['error']}")
        if r["turns_kept"] > r["turns_calm"]:
            notes.append(
                f"- {name}: DISTURBED: other processes used {r['others']:.2f} cores in the median "
                f"turn; only {r['turns_calm']} of {r['turns']} turns were calm, so all count"
            )
        elif r["turns_kept"] < r["turns"]:
            aside.append(f"{name} {r['turns'] - r['turns_kept']} of {r['turns']}")
    if aside:
        notes.append(f"- turns set aside because other processes ran: {', '.join(aside)}")
    notes += [f"- missing: {name}: {r['missing']}" for name, r in results.items() if "missing" in r]
    text = [
        f"## {_title(plan)}",
        "",
        f"{_describe(plan)}; {plan['flops'] / 1e6:.0f} MFLOP a step.",
        "",
        table(heads, rows, numbers=2) if rows else "Nothing could be timed.",
    ]
    return "\n".join(text + ([""] + notes if notes else []))


def _title(plan: dict) -> str:
    return f"{plan['name']}, batch {plan['batch']}"


def _describe(plan: dict) -> str:
    norm = {"none": "no BatchNorm", "g": "BatchNorm in G", "both": "BatchNorm in G and D"}
    return (
        f"latent {plan['latent']}, hidden {plan['hidden']}, {plan['depth']} Linear layers each, "
        f"image {'x'.join(map(str, plan['image']))}, {norm[plan['batchnorm']]}, "
        f"dropout {plan['dropout']}"
    )


def _grid(races: list[dict], facts: dict) -> str:
    """One line a plan: fastgan against the best of the others."""
    rows = []
    peak = machine.peak_gflops(facts["peak"], "fp32")
    for race in races:
        plan, results = race["plan"], race["results"]
        row = [_title(plan), f"{plan['flops'] / 1e6:.0f}"]
        for precision, ours in (("fp32", "fused"), ("bf16", "fused-bf16")):
            theirs = {
                name: r["median"]
                for name, r in results.items()
                if "median" in r
                and not CATALOGUE[name].ours
                and (precision == "bf16" or CATALOGUE[name].precision == "fp32")
            }
            best = min(theirs, key=theirs.get, default=None)
            mine = results.get(ours, {}).get("median")
            row += [
                f"{mine * 1e3:.3f}" if mine else "-",
                f"{theirs[best] * 1e3:.3f} {best}" if best else "-",
                f"{theirs[best] / mine:.2f}" if mine and best else "-",
            ]
            if precision == "fp32":
                rate = mine and plan["flops"] / mine / 1e9 / facts["threads"]
                row.append(f"{rate / peak:.0%}" if rate and peak else "-")
        rows.append(row)
    heads = ["plan", "MFLOP", "fused ms", "best fp32 peer", "ratio", "of peak"]
    heads += ["fused-bf16 ms", "best peer of all", "ratio"]
    return "## Against the best peer (medians)\n\n" + table(heads, rows)


def _overhead(item: dict, facts: dict) -> str:
    rows = [
        [
            name,
            str(r["calls"]),
            f"{r['single_ms']:.4f}",
            f"{r['together_ms']:.4f}",
            f"{r['extra_us']:+.1f}",
            f"{r['extra_us_range'][0]:+.1f} to {r['extra_us_range'][1]:+.1f}",
        ]
        for name, r in item["results"].items()
        if "missing" not in r
    ]
    return "\n".join(
        [
            f"## What one call costs: {_title(item['plan'])}",
            "",
            table(["peer", "n", "run(1) ms", "run(n)/n ms", "extra us", "range"], rows),
            *_disturbed(item),
            *_missing(item),
        ]
    )


def _contended(item: dict, facts: dict) -> str:
    rows = [
        [
            name,
            f"{r['quiet_ms']:.3f}",
            f"{r['contended_ms']:.3f}",
            f"{r['worst_ms']:.3f}",
            f"{r['slowdown']:.2f}",
        ]
        for name, r in item["results"].items()
        if "missing" not in r
    ]
    return "\n".join(
        [
            f"## With one other process burning a core: {_title(item['plan'])}",
            "",
            table(["peer", "quiet ms", "contended ms", "worst block", "slowdown"], rows),
            *_disturbed(item),
            *_missing(item),
        ]
    )


def _profile(item: dict, facts: dict) -> str:
    parts = [f"## Phases of a step: {_title(item['plan'])}"]
    for name, r in item["results"].items():
        if "missing" in r:
            continue
        peak = machine.peak_gflops(facts["peak"], CATALOGUE[name].precision)
        total = sum(work + wait for _, _, work, wait in r["phases"])
        all_flops = sum(flops for _, flops, _, _ in r["phases"])
        rows = []
        # A phase's rate is that of its kernel, at work; the step's includes the waiting.
        for phase, flops, work, wait in [*r["phases"], ("the step", all_flops, total, 0.0)]:
            rate = flops / work / 1e9 / facts["threads"] if work and flops else None
            rows.append(
                [
                    phase,
                    f"{work * 1e6:.1f}",
                    f"{wait * 1e6:.1f}",
                    f"{(work + wait) / total:.1%}" if total else "-",
                    f"{flops / 1e6:.1f}" if flops else "-",
                    f"{rate:.0f}" if rate else "-",
                    f"{rate / peak:.0%}" if rate and peak else "-",
                ]
            )
        heads = ["phase", "us", "waiting us", "share", "MFLOP", "GFLOP/s a core", "of peak"]
        clock = f"{r['seconds'] * 1e6:.1f} us a step by the clock"
        parts += ["", f"{name}, {r['steps']} steps, {clock}", "", table(heads, rows)]
    return "\n".join(parts + _missing(item))


def _disturbed(item: dict) -> list[str]:
    lines = [
        f"- {name}: DISTURBED: other processes used {r['others']:.2f} cores in the median round"
        for name, r in item["results"].items()
        if (r.get("others") or 0) > harness.DISTURBED
    ]
    return ["", *lines] if lines else []


def _missing(item: dict) -> list[str]:
    lines = [
        f"- missing: {n}: {r['missing']}" for n, r in item["results"].items() if "missing" in r
    ]
    return ["", *lines] if lines else []


def picture(record: dict, path: Path) -> None:
    """Bars of the median step of every peer, one panel a plan; the whiskers are the quartiles.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    races = record["races"]
    columns = min(3, len(races))
    rows = -(-len(races) // columns)
    most = max(sum("median" in r for r in race["results"].values()) for race in races)
    figure, axes = pyplot.subplots(
        rows,
        columns,
        figsize=(max(9, 6.2 * columns), (0.3 * most + 1.4) * rows + 0.6),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(races) :]:
        axis.set_visible(False)
    for axis, race in zip(axes.flat, races, strict=False):
        timed = sorted(
            ((name, r) for name, r in race["results"].items() if "median" in r),
            key=lambda item: -item[1]["median"],
        )
        colours = {
            (True, "fp32"): "#c23b22",
            (True, "bf16"): "#e8998d",
            (False, "fp32"): "#44546a",
            (False, "bf16"): "#9fb1c7",
        }
        medians = [r["median"] * 1e3 for _, r in timed]
        axis.barh(
            [name for name, _ in timed],
            medians,
            xerr=[
                [(r["median"] - r["q1"]) * 1e3 for _, r in timed],
                [(r["q3"] - r["median"]) * 1e3 for _, r in timed],
            ],
            color=[colours[CATALOGUE[n].ours, CATALOGUE[n].precision] for n, _ in timed],
            error_kw={"elinewidth": 1, "ecolor": "#222222"},
        )
        for row, (value, (_, r)) in enumerate(zip(medians, timed, strict=True)):
            axis.text(r["q3"] * 1e3, row, f" {value:.2f}", va="center", fontsize=8)
        axis.set_xlim(0, max(medians, default=1) * 1.18)
        axis.set_title(_title(race["plan"]), fontsize=10)
        axis.set_xlabel("ms a step, median (shorter is better)", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    facts = record["machine"]
    figure.suptitle(
        f"{facts['cpu']}, {facts['threads']} threads, {facts['date'][:10]}   "
        "(red: fastgan; pale: bf16)",
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
