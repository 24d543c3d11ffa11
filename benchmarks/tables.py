"""How good are synthetic tables, and how long do they take, beside ctgan's?

    pip install scikit-learn pandas ctgan sdmetrics
    python benchmarks/tables.py                  # 3 seeds of 300 epochs: about 6 minutes
    python benchmarks/tables.py --epochs 100 --seeds 1 --no-record
    python benchmarks/tables.py --adult          # speed on a larger table: 2 minutes
    python benchmarks/tables.py --adult --quality --epochs 20    # rows of it: about 8 minutes
    python benchmarks/tables.py --memory         # the peak of memory on large tables: 2 minutes
    python benchmarks/tables.py --newcomer       # commands on 5,000 rows: under 2 minutes

scikit-learn's breast cancer table (569 rows, 30 numbers, one class) is divided anew for each seed
into a training part of 70 % and a test part. ctgan and fastgan.tabular.Synthesizer learn the
training part with the same settings (CTGAN's own: batch 500, packs of 10, 300 epochs), one after
the other in turns, and make as many rows as it has. Classifiers are trained on these rows and
tested on the real test part (train on synthetic, test on real); so are classifiers on the real
training part, for what there is to be had. Shapes of columns and trends of pairs are SDMetrics',
beside the training part. A time is that of `fit`, encoders included; the part of the encoders is
said beside it.

With --adult both learn a made table of the size of Adult (32,561 rows, 6 columns of numbers, 9 of
categories), in turns, for one epoch: what that takes with encoders, and of it a step. Its rows are
judged as those above with --quality beside it.

The exit status is 0 if the mean area under the ROC curve and the mean accuracy lie at most 0.05
below ctgan's, shapes and trends at most the spread of ctgan's over its seeds, and a fit is at least
3 times as fast, else 1.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import machine

LEAST_SPEED, MOST_BELOW = 3.0, 0.05
PACKAGES = ("ctgan", "rdt", "scikit-learn", "pandas", "sdmetrics")


def fastgan_rows(
    train, discrete: list[str], epochs: int, seed: int
) -> tuple[object, dict[str, float]]:
    """Synthetic rows of fastgan, and seconds."""
    from fastgan.data.table import Table
    from fastgan.tabular import Synthesizer

    began = time.perf_counter()
    Table.learned(train, discrete).encoded(train)
    encoders = time.perf_counter() - began
    began = time.perf_counter()
    synthesizer = Synthesizer(epochs=epochs, seed=seed).fit(train, discrete)
    whole = time.perf_counter() - began
    return synthesizer.sample(len(train)), {"fit": whole, "encoders": encoders}


def ctgan_rows(
    train, discrete: list[str], epochs: int, seed: int
) -> tuple[object, dict[str, float]]:
    """Synthetic rows of ctgan, and seconds."""
    from ctgan import CTGAN
    from ctgan.data_transformer import DataTransformer

    encoders = time.perf_counter()
    transformer = DataTransformer()
    transformer.fit(train, discrete)
    transformer.transform(train)
    encoders = time.perf_counter() - encoders
    began = time.perf_counter()
    synthesizer = CTGAN(epochs=epochs, enable_gpu=False)
    synthesizer.set_random_state(seed)
    synthesizer.fit(train, discrete)
    whole = time.perf_counter() - began
    return synthesizer.sample(len(train)), {"fit": whole, "encoders": encoders}


def scores(rows, train, test, target: str, discrete: list[str]) -> dict[str, float]:
    """How well classifiers that saw these rows know the test part: means over three kinds.

    And how like the training part they are, by SDMetrics.
    """
    import pandas
    from sdmetrics.reports.single_table import QualityReport
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.tree import DecisionTreeClassifier

    both = pandas.concat([rows, test]).drop(columns=target)
    inputs = pandas.get_dummies(both, columns=[n for n in discrete if n != target])
    x, known = inputs[: len(rows)], inputs[len(rows) :]
    auc, accuracy = [], []
    for kind in (
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        RandomForestClassifier(200, random_state=0),
        DecisionTreeClassifier(max_depth=5, random_state=0),
    ):
        kind.fit(x, rows[target])
        auc.append(roc_auc_score(test[target], kind.predict_proba(known)[:, 1]))
        accuracy.append(accuracy_score(test[target], kind.predict(known)))
    kinds = {n: {"sdtype": "categorical" if n in discrete else "numerical"} for n in train}
    report = QualityReport()
    # Of all pairs: by itself it takes those that are strongly related in real rows, of which there
    # may be none. A pair with a constant column has no score, and counts as 0 here.
    report.real_correlation_threshold = report.real_association_threshold = 0
    report.generate(train, rows, {"columns": kinds}, verbose=False)
    shapes = report.get_properties()["Score"][0]
    pairs = report.get_details("Column Pair Trends")["Score"].fillna(0.0).mean()
    return {
        "auc": statistics.mean(auc), "accuracy": statistics.mean(accuracy),
        "shapes": float(shapes), "pairs": float(pairs),
    }  # fmt: skip


def adult(rows: int = 32_561, seed: int = 0):
    """A table with the columns of Adult, and the names of those of categories."""
    import numpy as np
    import pandas

    draw = np.random.default_rng(seed)
    kinds = {
        "workclass": 9, "education": 16, "marital": 7, "occupation": 15, "relationship": 6,
        "race": 5, "sex": 2, "country": 42, "income": 2,
    }  # fmt: skip
    group = draw.integers(0, 5, rows)
    hours = np.where(draw.random(rows) < 0.45, 40, np.round(draw.normal(40, 13, rows)))
    gain = np.round(np.exp(draw.normal(8, 1.2, rows)))
    loss = np.round(draw.normal(1870, 350, rows))
    numbers = {
        "age": np.clip(np.round(draw.gamma(6, 5, rows) + 17 + 3 * group), 17, 90),
        "weight": np.round(np.exp(draw.normal(12, 0.5, rows))),
        "years": np.clip(np.round(draw.normal(8 + group, 2.5, rows)), 1, 16),
        "gain": np.where(draw.random(rows) < 0.92, 0, gain),
        "loss": np.where(draw.random(rows) < 0.95, 0, loss),
        "hours": np.clip(hours, 1, 99),
    }
    table = {name: values.astype(int) for name, values in numbers.items()}
    for name, size in kinds.items():
        share = 1 / np.arange(1, size + 1) ** 1.3
        own = draw.choice(size, rows, p=share / share.sum())
        code = np.where(draw.random(rows) < 0.4, group % size, own)
        table[name] = np.array([f"{name}-{i}" for i in range(size)])[code]
    return pandas.DataFrame(table), list(kinds)


@contextlib.contextmanager
def timed(*places: tuple[object, str]):
    """Seconds spent in some functions meanwhile, as the one number of a list."""
    spent, own = [0.0], [(owner, name, getattr(owner, name)) for owner, name in places]

    def counting(function):
        def call(*args, **kwargs):
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[0] += time.perf_counter() - began

        return call

    for owner, name, function in own:
        setattr(owner, name, counting(function))
    try:
        yield spent
    finally:
        for owner, name, function in own:
            setattr(owner, name, function)


def first_epoch(name: str, frame, discrete: list[str]) -> dict[str, float]:
    """Seconds of one epoch with encoders, of the encoders in it, and milliseconds of a step."""
    if name == "fastgan":
        from fastgan import data
        from fastgan.tabular import Synthesizer

        places, fitted = [(data, "open")], Synthesizer(epochs=1)
    else:
        from ctgan import CTGAN
        from ctgan.data_sampler import DataSampler
        from ctgan.data_transformer import DataTransformer

        places = [(DataTransformer, "fit"), (DataTransformer, "transform")]
        places, fitted = [*places, (DataSampler, "__init__")], CTGAN(epochs=1, enable_gpu=False)
    with timed(*places) as spent:
        began = time.perf_counter()
        fitted.fit(frame, discrete)
        whole = time.perf_counter() - began
    step = 1e3 * (whole - spent[0]) / (len(frame) // 500)
    return {"epoch": whole, "encoders": spent[0], "step_ms": step}


def of_adult(turns: int) -> tuple[str, bool, dict]:
    """Both programs' first epochs in turns; whether ours takes at most a third of the time."""
    frame, discrete = adult()
    first_epoch("fastgan", frame[:2000], discrete)
    found = {name: [] for name in PROGRAMS}
    for turn in range(turns):
        names = list(PROGRAMS)
        for name in names if turn % 2 else names[::-1]:
            found[name].append(first_epoch(name, frame, discrete))
            print(name, found[name][-1], file=sys.stderr, flush=True)
    lines = ["| | fastgan | ctgan | ratio |", "|---|---|---|---|"]
    kept = True
    for key, what in (
        ("epoch", "first epoch, s"),
        ("encoders", "encoders, s"),
        ("step_ms", "a step, ms"),
    ):
        for of in (statistics.median, min):
            ours, theirs = (of(one[key] for one in found[name]) for name in ("fastgan", "ctgan"))
            lines.append(
                f"| {what}, {of.__name__} | {ours:.2f} | {theirs:.2f} | {theirs / ours:.2f} |"
            )
            kept &= key == "encoders" or theirs / ours >= LEAST_SPEED
    return "\n".join(lines), kept, found


def wide(rows: int = 20_000, columns: int = 20, kinds: int = 100):
    """A table of 2,000 categories, and the names of its columns."""
    import numpy as np
    import pandas

    draw = np.random.default_rng(0)
    codes = draw.integers(0, kinds, (rows, columns))
    codes[:kinds] = np.arange(kinds)[:, None]  # all of them are there
    table = pandas.DataFrame({f"c{i}": codes[:, i] for i in range(columns)})
    return table.astype(str), list(table.columns)


LARGE = {"a million rows": lambda: adult(1_000_000), "2,000 categories": wide}


def peak(path: str) -> dict[str, float]:
    """Gigabytes at most, in this process: with the frame alone, with encoders, with ten steps."""
    from fastgan.data.table import read
    from fastgan.tabular import Synthesizer

    def most() -> float:
        # Linux's own; that of getrusage begins with what the parent had.
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 2**20

    imported = most()
    frame = read(path)
    before = most()
    discrete = [name for name in frame if frame[name].dtype.kind != "i"]
    trainer = Synthesizer()._begun(frame, discrete)
    encoded = most()
    trainer.engine.run(10)
    return {
        "rows": len(frame), "width": trainer.data.shape[0], "imports": imported,
        "frame": before, "with encoders": encoded, "with ten steps": most(),
    }  # fmt: skip


def memory() -> str:
    """What large tables take, each in a process of its own."""
    lines = [
        "| table | rows | numbers in a row | GB with imports | and the frame | and encoders | and "
        "ten steps |",
        "|---" * 7 + "|",
    ]
    for name, make in LARGE.items():
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/table.parquet"
            make()[0].to_parquet(path)
            call = [sys.executable, __file__, "--peak", path]
            made = subprocess.run(call, check=True, capture_output=True, text=True)
        found = json.loads(made.stdout.splitlines()[-1])
        keys = ("imports", "frame", "with encoders", "with ten steps")
        sizes = (f"{found[k]:.2f}" for k in keys)
        lines.append(f"| {name} | {found['rows']} | {found['width']} | {' | '.join(sizes)} |")
    return "\n".join(lines)


def newcomer(rows: int = 5000) -> str:
    """What the commands of a new user take, without a flag, on a CSV of so many rows."""
    lines = ["| command | seconds |", "|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        adult(rows)[0].to_csv(f"{folder}/people.csv", index=False)
        whole = 0.0
        for words in (
            "table people.csv --out run", "table sample run --n 5000 --out new.csv",
            "evaluate run", "report run",
        ):  # fmt: skip
            began = time.perf_counter()
            call = [sys.executable, "-m", "fastgan", *words.split()]
            subprocess.run(call, check=True, cwd=folder, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - began
            whole += seconds
            lines.append(f"| fastgan {words} | {seconds:.1f} |")
    return "\n".join([*lines, f"| all | {whole:.1f} |"])


PROGRAMS = {"fastgan": fastgan_rows, "ctgan": ctgan_rows}


def cancer():
    """scikit-learn's breast cancer table, the column to know, and those of categories."""
    from sklearn.datasets import load_breast_cancer

    return load_breast_cancer(as_frame=True).frame, "target", ["target"]


def measured(table, target: str, discrete: list[str], epochs: int, seeds: int) -> list[dict]:
    """One entry for each program and seed, and one for the real rows."""
    from sklearn.model_selection import train_test_split

    # Whatever a first fit loads and makes once is no part of a fit.
    fastgan_rows(table[:500], discrete, 1, 0)
    found = []
    for seed in range(seeds):
        train, test = train_test_split(
            table, test_size=0.3, random_state=seed, stratify=table[target]
        )
        train, test = train.reset_index(drop=True), test.reset_index(drop=True)

        def judged(rows, train=train, test=test):
            return scores(rows, train, test, target, discrete)

        found.append({"program": "real rows", "seed": seed, **judged(train)})
        names = list(PROGRAMS)
        for name in names if seed % 2 else names[::-1]:
            rows, seconds = PROGRAMS[name](train, discrete, epochs, seed)
            found.append({"program": name, "seed": seed, **seconds, **judged(rows)})
            print(found[-1], file=sys.stderr, flush=True)
    return found


def summary(found: list[dict]) -> tuple[str, bool]:
    """A table of means over the seeds, and whether fastgan keeps what is asked of it."""
    keys = ("auc", "accuracy", "shapes", "pairs", "fit", "encoders")
    each = {
        (name, key): [f[key] for f in found if f["program"] == name]
        for name in (*PROGRAMS, "real rows")
        for key in (keys if name in PROGRAMS else keys[:4])
    }
    mean = {place: statistics.mean(values) for place, values in each.items()}
    lines = [
        "| rows of | AUC | accuracy | shapes | pairs | fit, s | of it encoders, s |",
        "|---" * 7 + "|",
    ]
    for name in ("real rows", *PROGRAMS):
        cells = (f"{mean[name, k]:.3f}" if (name, k) in mean else "" for k in keys)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    speed = mean["ctgan", "fit"] / mean["fastgan", "fit"]

    def steps(name: str) -> float:
        return mean[name, "fit"] - mean[name, "encoders"]

    below = {key: mean["ctgan", key] - mean["fastgan", key] for key in keys[:4]}
    spread = {key: max(v) - min(v) for key in keys[:4] if (v := each["ctgan", key])}
    lines.append(
        f"\nfit: {speed:.2f} times as fast as ctgan; without encoders "
        f"{steps('ctgan') / steps('fastgan'):.2f} times. Below its score by "
        + ", ".join(f"{value:.3f} ({key})" for key, value in below.items())
        + "; its seeds lie "
        + ", ".join(f"{value:.3f} ({key})" for key, value in spread.items())
        + " apart."
    )
    kept = max(below["auc"], below["accuracy"]) <= MOST_BELOW
    kept &= all(below[key] <= spread[key] for key in ("shapes", "pairs"))
    return "\n".join(lines), speed >= LEAST_SPEED and kept


def main() -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--adult", action="store_true", help="speed on a larger table")
    parser.add_argument("--quality", action="store_true", help="with --adult: how good rows are")
    parser.add_argument("--memory", action="store_true", help="what large tables take")
    parser.add_argument("--newcomer", action="store_true", help="the commands of a new user")
    parser.add_argument("--peak", metavar="FILE", help="what that table takes, in this process")
    parser.add_argument("--turns", type=int, default=3, help="of --adult")
    parser.add_argument("--no-record", action="store_true", help="keep nothing")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    if chosen.newcomer:
        print(newcomer())
        return 0
    if chosen.peak or chosen.memory:
        print(json.dumps(peak(chosen.peak)) if chosen.peak else memory())
        return 0
    facts = machine.facts(native=False)
    if chosen.adult and not chosen.quality:
        text, kept, found = of_adult(chosen.turns)
    else:
        if chosen.adult:
            table, discrete = adult()
            known = "income"
        else:
            table, known, discrete = cancer()
        found = measured(table, known, discrete, chosen.epochs, chosen.seeds)
        text, kept = summary(found)
    print(text)
    if not chosen.no_record:
        there = {one.name: one.version for one in importlib.metadata.distributions()}
        versions = {name: there.get(name, "not installed") for name in PACKAGES}
        record = {
            "machine": facts, "versions": versions, "epochs": chosen.epochs, "runs": found,
            "load_after": machine.facts(native=False)["load"],
        }  # fmt: skip
        parts = ("adult" * chosen.adult, "quality" * (chosen.adult and chosen.quality))
        stem = "-".join([facts["date"][:10], "tables", *filter(None, parts)])
        folder = Path(__file__).resolve().parent / "records"
        path = next(
            p for i in range(1, 1000)
            if not (p := folder / f"{stem}{'' if i == 1 else f'-{i}'}.json").exists()
        )  # fmt: skip
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
        print(path)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
