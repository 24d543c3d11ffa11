"""Results as data, as tables and as one picture."""

from __future__ import annotations

import dataclasses
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
    chip = f"{slug(facts['cpu'])}-{facts['threads']}t"
    if "gpu" in facts:
        chip = slug(facts["gpu"]["name"])
    stem = f"{date}-{chip}-{slug(topic)}"
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
    if "gpu" in facts:
        lines += _gpu(facts["gpu"], before.get("gpu"), after.get("gpu"))
    if record.get("left_out"):
        lines.append(f"- left out when the time was over: {', '.join(record['left_out'])}")
    lines += [f"- {what} not measured: {why}" for what, why in facts["missing"].items()]
    return "\n".join(lines)


def _gpu(card: dict, before: dict | None, after: dict | None) -> list[str]:
    def clocks(when):
        if when is None:
            return "unknown"
        # Numbers, or what nvidia-smi says in their place.
        return f"{_plain(when['clocks.sm'])} MHz, {_plain(when['temperature.gpu'])} C"

    peaks = ", ".join(f"{kind} {rate:g}" for kind, rate in card["matmul_tflops"].items())
    lines = [
        f"- {card['name']}, compute capability {card['capability']}, {card['sms']} SMs, "
        f"{card['l2_mib']:g} MiB of L2, {card['memory_gib']} GiB; driver "
        f"{card.get('driver', 'unknown')}, CUDA {card['cuda']}, cuDNN {card['cudnn']}",
        f"- measured ceilings: copy {card['copy_gbs']:g} GB/s (read + written); matrix products "
        f"{peaks} TFLOP/s; a launch from Python {card['launch_us']:g} us, a node of a graph "
        f"{card['node_us']:g} us",
        f"- clock as found before / after: {clocks(before)} / {clocks(after)}",
    ]
    return lines + [f"- {what} unknown: {why}" for what, why in card.get("missing", {}).items()]


def _plain(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


@dataclasses.dataclass(frozen=True)
class Units:
    """How times and rates are written: for cores, or for a GPU."""

    time: str
    scale: float
    digits: int
    rate: str
    operations: float
    share: int
    peaks: dict

    @classmethod
    def of(cls, facts: dict) -> Units:
        if "gpu" in facts:
            return cls("us", 1e6, 2, "TFLOP/s", 1e12, 1, facts["gpu"]["matmul_tflops"])
        peaks = {kind: machine.peak_gflops(facts["peak"], kind) for kind in ("fp32", "bf16")}
        return cls("ms", 1e3, 3, "GFLOP/s a core", 1e9, facts["threads"], peaks)

    def show(self, seconds: float) -> str:
        return f"{seconds * self.scale:.{self.digits}f}"

    def speed(self, flops: float, seconds: float) -> float:
        return flops / seconds / self.operations / self.share

    def show_speed(self, speed: float) -> str:
        return f"{speed:.0f}" if self.rate.startswith("G") else f"{speed:.3g}"

    def of_peak(self, speed: float, precision: str) -> str:
        peak = self.peaks.get(precision)
        return f"{speed / peak:.0%}" if peak else "?"


def _load(when: dict) -> str:
    return f"{when['load'][0]:.2f}" if when.get("load") else "unknown"


def _race(race: dict, facts: dict) -> str:
    plan, results, ratios = race["plan"], race["results"], race["ratios"]
    units = Units.of(facts)
    first = ("graph", "fused", "fused-bf16") if "gpu" in facts else ("fused", "fused-bf16")
    ours = [name for name in first if name in ratios] or list(ratios)[:2]
    heads = ["peer", "precision", f"best {units.time}", "median", "IQR", units.rate]
    heads += ["of peak", "cores"]
    heads += [f"x {name}" for name in ours] + ["D, G loss"]
    rows, notes, aside = [], [], []
    timed = {name: r for name, r in results.items() if "median" in r}
    for name, r in sorted(timed.items(), key=lambda item: item[1]["median"]):
        precision = CATALOGUE[name].precision
        rate = units.speed(plan["flops"], r["best"])
        rows.append(
            [
                name,
                precision,
                units.show(r["best"]),
                units.show(r["median"]),
                units.show(r["q3"] - r["q1"]),
                units.show_speed(rate),
                units.of_peak(rate, precision),
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
        f"{describe(plan)}; {plan['flops'] / 1e6:.0f} MFLOP a step.",
        "",
        table(heads, rows, numbers=2) if rows else "Nothing could be timed.",
    ]
    return "\n".join(text + ([""] + notes if notes else []))


def _title(plan: dict) -> str:
    return f"{plan['name']}, batch {plan['batch']}"


def describe(plan: dict) -> str:
    # Records from before these fields existed are of MLPs.
    words = {"r1": ", R1 in every step", "wgan-gp": ", WGAN-GP"}
    penalty = words.get(plan.get("penalty"), "")
    if plan.get("d_steps", 1) > 1:
        penalty += f", {plan['d_steps']} updates of D a step"
    if plan.get("network", "mlp") != "mlp":
        name = {"dcgan": "DCGAN", "resnet": "SN-ResNet"}[plan["network"]]
        return (
            f"{name}, latent {plan['latent']}, width {plan['hidden']}, image "
            f"{'x'.join(map(str, plan['image']))}{penalty}"
        )
    norm = {"none": "no BatchNorm", "g": "BatchNorm in G", "both": "BatchNorm in G and D"}
    return (
        f"latent {plan['latent']}, hidden {plan['hidden']}, {plan['depth']} Linear layers each, "
        f"image {'x'.join(map(str, plan['image']))}, {norm[plan['batchnorm']]}, "
        f"dropout {plan['dropout']}{penalty}"
    )


def _grid(races: list[dict], facts: dict) -> str:
    """One line a plan: fastgan against the best of the others that round no more than it does."""
    rows = []
    units = Units.of(facts)
    kinds = {"fp32": "fused", "bf16": "fused-bf16"}
    if "gpu" in facts:
        kinds = {"fp32": "auto", "tf32": "auto-tf32", "bf16": "auto-bf16"}
    finer = list(kinds)
    for race in races:
        plan, results = race["plan"], race["results"]
        row = [_title(plan), f"{plan['flops'] / 1e6:.0f}"]
        for precision, ours in kinds.items():
            allowed = finer[: finer.index(precision) + 1]
            theirs = {
                name: r["median"]
                for name, r in results.items()
                if "median" in r
                and not CATALOGUE[name].ours
                and CATALOGUE[name].precision in allowed
            }
            best = min(theirs, key=theirs.get, default=None)
            mine = results.get(ours, {}).get("median")
            row += [
                units.show(mine) if mine else "-",
                f"{units.show(theirs[best])} {best}" if best else "-",
                f"{theirs[best] / mine:.2f}" if mine and best else "-",
            ]
            if precision == "fp32":
                rate = mine and units.speed(plan["flops"], mine)
                row.append(units.of_peak(rate, precision) if rate else "-")
        rows.append(row)
    heads = ["plan", "MFLOP"]
    for precision, ours in kinds.items():
        peers = "best peer of all" if precision == "bf16" else f"best {precision} peer"
        heads += [f"{ours} {units.time}", peers, "ratio"] + ["of peak"] * (precision == "fp32")
    return "## Against the best peer (medians)\n\n" + table(heads, rows)


def _overhead(item: dict, facts: dict) -> str:
    rows = [
        [
            name,
            str(r["calls"]),
            f"{r['single_ms']:.4f}",
            f"{r['together_ms']:.4f}",
            f"{r['extra_us']:+.1f}",
            f"{r['extra_us_quartiles'][0]:+.1f} to {r['extra_us_quartiles'][1]:+.1f}",
        ]
        for name, r in item["results"].items()
        if "missing" not in r
    ]
    return "\n".join(
        [
            f"## What one call costs: {_title(item['plan'])}",
            "",
            table(["peer", "n", "run(1) ms", "run(n)/n ms", "extra us", "quartiles"], rows),
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
        units, precision = Units.of(facts), CATALOGUE[name].precision
        total = sum(work + wait for _, _, work, wait in r["phases"])
        all_flops = sum(flops for _, flops, _, _ in r["phases"])
        rows = []
        # A phase's rate is that of its kernel, at work; the step's includes the waiting.
        for phase, flops, work, wait in [*r["phases"], ("the step", all_flops, total, 0.0)]:
            rate = units.speed(flops, work) if work and flops else None
            rows.append(
                [
                    phase,
                    f"{work * 1e6:.1f}",
                    f"{wait * 1e6:.1f}",
                    f"{(work + wait) / total:.1%}" if total else "-",
                    f"{flops / 1e6:.1f}" if flops else "-",
                    units.show_speed(rate) if rate else "-",
                    units.of_peak(rate, precision) if rate else "-",
                ]
            )
        heads = ["phase", "us", "waiting us", "share", "MFLOP", units.rate, "of peak"]
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

    races, facts = record["races"], record["machine"]
    units = Units.of(facts)
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
            (True, "tf32"): "#d9695a",
            (True, "bf16"): "#e8998d",
            (False, "fp32"): "#44546a",
            (False, "tf32"): "#71839b",
            (False, "bf16"): "#9fb1c7",
        }
        medians = [r["median"] * units.scale for _, r in timed]
        axis.barh(
            [name for name, _ in timed],
            medians,
            xerr=[
                [(r["median"] - r["q1"]) * units.scale for _, r in timed],
                [(r["q3"] - r["median"]) * units.scale for _, r in timed],
            ],
            color=[colours[CATALOGUE[n].ours, CATALOGUE[n].precision] for n, _ in timed],
            error_kw={"elinewidth": 1, "ecolor": "#222222"},
        )
        for row, (value, (_, r)) in enumerate(zip(medians, timed, strict=True)):
            written = f" {value:.0f}" if value >= 100 else f" {value:#.3g}"
            axis.text(r["q3"] * units.scale, row, written, va="center", fontsize=8)
        axis.set_xlim(0, max(medians, default=1) * 1.18)
        axis.set_title(_title(race["plan"]), fontsize=10)
        label = f"{units.time} a step: median and quartiles (shorter is better)"
        axis.set_xlabel(label, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    where = f"{facts['cpu']}, {facts['threads']} threads"
    if "gpu" in facts:
        where = facts["gpu"]["name"]
    figure.suptitle(
        f"{where}, {facts['date'][:10]}   (red: fastgan; pale: bf16{', tf32' * ('gpu' in facts)})",
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
