"""The lines of a run, in memory and on disk.

log.jsonl has what a resumed run repeats to the byte, timing.jsonl what it cannot, config.json what
the run was asked for, and quality.jsonl what was measured of its samples.
"""

import json
import logging
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fastgan.run import files, schema
from fastgan.run.checkpoint import CheckpointError
from fastgan.statistics import MEASURE_NAMES

logger = logging.getLogger("fastgan")

LOG, TIMING, CONFIG = "log.jsonl", "timing.jsonl", "config.json"
QUALITY = "quality.jsonl"
TENSORBOARD = "tensorboard"
"""The folder of its files."""


class RunLog:
    """Collects the statistics of every step and turns them into lines.

    A line tells the statistics of its step and their means over the steps since the line before. A
    run that ends between two log intervals gets one more line, which is taken back when it goes on.

    Attributes:
        columns: the names of the statistics.
        history: the lines so far, as dicts.
        last: the statistics of the last step looked at, by name; NaN before the first.
        measures: what the last line tells of its step; None before the first.
    """

    def __init__(self, columns: Sequence[str]):
        """Start with no lines.

        Args:
            columns: the names of what an engine tells of every step, such as "d_loss".
        """
        self.columns = tuple(columns)
        self.history: list[dict] = []
        self.last = dict.fromkeys(self.columns, math.nan)
        self.measures: dict[str, float | None] = dict.fromkeys(MEASURE_NAMES)
        self._whole_lines = 0
        self._unlogged: list[Tensor] = []
        self._files: list[BinaryIO] = []

    def add(self, statistics: Tensor) -> None:
        """Take the statistics of the next steps, float32 [n, columns], from any device."""
        self._unlogged.append(statistics)

    def first_bad(self) -> tuple[int, dict[str, float]] | None:
        """Look at the statistics since the last line.

        Returns:
            None if all losses are finite; else, of the first step where they are not, how many
            steps have followed it, and the statistics by name.
        """
        values = self._read()
        losses = [i for i, name in enumerate(self.columns) if name.endswith("_loss")]
        bad = (~torch.isfinite(values[:, losses]).all(1)).nonzero()
        if len(bad):
            first = int(bad[0])
            return len(values) - first - 1, self._named(values[first].tolist())
        if len(values):
            self.last = self._named(values[-1].tolist())
        return None

    def line(self, step: int, epoch: int) -> dict[str, Any] | None:
        """The line of a step, which `write` puts into the log; None if no step followed the last.

        Args:
            step: steps done.
            epoch: the step's epoch, from 1.

        Returns:
            "step", "epoch", every statistic's value at the step under its name, and its mean since
            the last whole line under ``<name>_mean``. More values may be added to it.
        """
        values = self._read().double()
        if not len(values):
            return None
        line: dict[str, Any] = {"step": step, "epoch": epoch}
        for ending, row in (("", values[-1]), ("_mean", values.mean(0))):
            for name, value in zip(self.columns, row.tolist(), strict=True):
                line[name + ending] = float(f"{value:.9g}")
        return line

    def measure(self, measured: Tensor | None) -> dict[str, float | None]:
        """Take what an engine has measured of the last step; by name, None where it has no number.

        To six digits: the order of sums, which may differ with the number of threads, is not in
        them.
        """
        values = [math.nan] * len(MEASURE_NAMES) if measured is None else measured.tolist()
        self.measures = {
            name: float(f"{value:.6g}") if math.isfinite(value) else None
            for name, value in zip(MEASURE_NAMES, values, strict=True)
        }
        return self.measures

    def write(self, line: dict[str, Any], seconds: float, *, whole: bool = True) -> None:
        """Put a line into the log.

        Args:
            line: what `line` returned, with values of others perhaps: numbers, texts, lists or
                dicts of such. Numbers that are not finite become None, which JSON has a word for.
            seconds: training time so far.
            whole: the step ends a log interval; otherwise the line is taken back later.

        Raises:
            ValueError: a value is nothing that JSON could hold, or one of ours is no number any
                more, with which the log could not be read again; the message names it.
        """
        line = {name: _plain(name, value) for name, value in line.items()}
        try:
            self._fields()(line)
        except schema.Wrong as wrong:
            raise ValueError(
                f"the log line's {wrong}; a callback may add values under names of its own"
            ) from None
        self.history.append(line)
        timing = {"step": line["step"], "seconds": round(seconds, 4)}
        for file, content in zip(self._files, (line, timing), strict=False):
            file.write(json.dumps(content).encode() + b"\n")
            file.flush()
        if whole:
            self._whole_lines += 1
            self._unlogged = []

    @contextmanager
    def open(self, out: Path | None, about: dict[str, Any]):
        """Lines go to the files of a run's directory meanwhile; without one, to `history` only.

        What a killed run had written after its last whole line is cut off. `about` is written to
        config.json, if there is none.
        """
        del self.history[self._whole_lines :]
        with ExitStack() as stack:
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                if not (out / CONFIG).exists():
                    text = json.dumps(about, indent=2) + "\n"
                    files.write(out / CONFIG, lambda file: file.write(text.encode()))
                for name in (LOG, TIMING):
                    kept = b"".join(_head(out / name, self._whole_lines))
                    files.write(out / name, lambda file, kept=kept: file.write(kept))
                    self._files.append(stack.enter_context(open(out / name, "ab")))
            try:
                yield
            finally:
                self._files = []

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps; the lines themselves are in the file, which is synced."""
        for file in self._files:
            os.fsync(file.fileno())
        seen = all(math.isfinite(v) for name, v in self.last.items() if name.endswith("_loss"))
        return {
            "columns": list(self.columns),
            "lines": self._whole_lines,
            "unlogged": self._read(),
            "last": [v if math.isfinite(v) else None for v in self.last.values()] if seen else None,
        }

    def load_state_dict(self, state: dict[str, Any], file: Path) -> None:
        """Go back to a checkpoint's state, with the lines of the run's directory up to there.

        Lines that log.jsonl has lost are lost, and a warning says how many.

        Args:
            state: what `state_dict` returned, checked by `checkpoint.load`.
            file: the checkpoint, beside which the log lies.

        Raises:
            CheckpointError: the log's columns are not this run's, or a line of log.jsonl is none.
        """
        out = file.parent
        if tuple(state["columns"]) != self.columns:
            raise CheckpointError(
                f"{file}: field 'log.columns' is {', '.join(state['columns'])}, but this fastgan "
                f"logs {', '.join(self.columns)}; resume the run with the fastgan that wrote it"
            )
        history = [
            self._parsed(out / LOG, number, line)
            for number, line in enumerate(_head(out / LOG, state["lines"]), 1)
        ]
        if lost := state["lines"] - len(history):
            logger.warning(
                "%s: %d of the %d lines that the checkpoint counts are missing; the log goes on "
                "without them",
                out / LOG,
                lost,
                state["lines"],
            )
        self.history = history
        self._whole_lines = len(history)
        self._unlogged = [state["unlogged"]]
        if state["last"] is not None:
            self.last = self._named([math.nan if v is None else v for v in state["last"]])

    def _parsed(self, path: Path, number: int, line: bytes) -> dict[str, Any]:
        try:
            found = json.loads(line)
            self._fields()(found)
        except (ValueError, RecursionError) as error:
            reason = error if isinstance(error, schema.Wrong) else "it is no JSON"
            raise CheckpointError(
                f"{path}: line {number} is damaged: {reason}; move the file away to go on with a "
                "log that begins now"
            ) from None
        return found

    def _fields(self) -> schema.Record:
        numbers = (self.columns, (f"{name}_mean" for name in self.columns))
        fields = {"step": schema.integer(1), "epoch": schema.integer(1)}
        fields |= {name: schema.optional(schema.number()) for names in numbers for name in names}
        return schema.Record(fields, others=schema.plain)

    def _named(self, values: Sequence[float]) -> dict[str, float]:
        return dict(zip(self.columns, values, strict=True))

    def _read(self) -> Tensor:
        """The statistics since the last whole line, [steps, columns] on the CPU."""
        nothing = torch.empty(0, len(self.columns), device="cpu")
        values = torch.cat([nothing, *(t.cpu() for t in self._unlogged)])
        self._unlogged = [values]
        return values


def keep_quality(out: Path, line: dict[str, Any]) -> None:
    """Put a line into the quality.jsonl of a run's directory; a warning where that cannot be."""
    line = {name: _plain(name, value) for name, value in line.items()}
    try:
        with open(out / QUALITY, "ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
    except OSError as error:
        logger.warning(
            "what was measured is not kept: %s",
            files.unwritable(out / QUALITY, error, "make the directory writable"),
        )


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, Tensor) or type(value).__module__ == "numpy":
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(f"{name}[{i}]", item) for i, item in enumerate(value)]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise ValueError(
        f"the log line's {name!r} is a {type(value).__name__}; expected a number, a text, or a "
        "list or dict of such"
    )


def _head(path: Path, lines: int) -> list[bytes]:
    """The first whole lines of a file, as they are."""
    if not path.exists():
        return []
    with open(path, "rb") as file:
        head = [line for _, line in zip(range(lines), file, strict=False)]
    # The last may be one that a kill cut short.
    return [line for line in head if line.endswith(b"\n")]
