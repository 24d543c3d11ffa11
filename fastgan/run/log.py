"""The lines of a run, in memory and on disk.

log.jsonl has what a resumed run repeats to the byte, timing.jsonl what it cannot, and config.json
what the run was asked for.
"""

import json
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgan.run import checkpoint

LOG, TIMING, CONFIG = "log.jsonl", "timing.jsonl", "config.json"


class RunLog:
    """Collects the losses of every step and turns them into lines.

    A line tells the losses of its step and their means over the steps since the line before. A run
    that ends between two log intervals gets one more line, which is taken back when it goes on.

    Attributes:
        history: the lines so far, as dicts.
        last: D's and G's loss at the last step looked at; NaN before the first.
    """

    def __init__(self):
        """Start with no lines."""
        self.history: list[dict] = []
        self.last: tuple[float, float] = (float("nan"), float("nan"))
        self._whole_lines = 0
        self._unlogged: list[Tensor] = []
        self._files: list[Any] = []

    def add(self, losses: Tensor) -> None:
        """Take the losses of the next steps, float32 [n, 2]; they stay on their device for now."""
        self._unlogged.append(losses)

    def first_bad(self) -> tuple[int, float, float] | None:
        """Look at the losses since the last line.

        Returns:
            None if all are finite; else, of the first step where they are not, how many steps have
            followed it, D's loss and G's.
        """
        losses = self._read()
        bad = (~torch.isfinite(losses).all(1)).nonzero()
        if len(bad):
            first = int(bad[0])
            return len(losses) - first - 1, *losses[first].tolist()
        if len(losses):
            self.last = tuple(losses[-1].tolist())
        return None

    def write(self, step: int, epoch: int, seconds: float, *, whole: bool = True) -> None:
        """Make the line of a step, if there were steps since the last one.

        Args:
            step: steps done.
            epoch: the step's epoch, from 1.
            seconds: training time so far.
            whole: the step ends a log interval; otherwise the line is taken back later.
        """
        values = self._read().double()
        if not len(values):
            return
        numbers = [f"{x:.9g}" for x in (*values[-1].tolist(), *values.mean(0).tolist())]
        names = ("d_loss", "g_loss", "d_loss_mean", "g_loss_mean")
        line = {"step": step, "epoch": epoch}
        line.update(zip(names, map(float, numbers), strict=True))
        self.history.append(line)
        timing = {"step": step, "seconds": round(seconds, 4)}
        for file, content in zip(self._files, (line, timing), strict=False):
            file.write(json.dumps(content) + "\n")
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
                    (out / CONFIG).write_text(json.dumps(about, indent=2) + "\n")
                for name in (LOG, TIMING):
                    kept = "".join(_head(out / name, self._whole_lines)).encode()
                    checkpoint.write(out / name, lambda file, kept=kept: file.write(kept))
                    self._files.append(stack.enter_context(open(out / name, "a")))
            try:
                yield
            finally:
                self._files = []

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps; the lines themselves are in the file."""
        return {"lines": self._whole_lines, "unlogged": self._read(), "last": list(self.last)}

    def load_state_dict(self, state: dict[str, Any], out: Path) -> None:
        """Go back to a checkpoint's state, with the lines of the run's directory up to there."""
        self._unlogged = [state["unlogged"]]
        self.last = tuple(state["last"])
        self.history = [json.loads(line) for line in _head(out / LOG, state["lines"])]
        self._whole_lines = len(self.history)

    def _read(self) -> Tensor:
        """The losses since the last whole line, [steps, 2] on the CPU."""
        losses = torch.cat([torch.empty(0, 2), *(t.cpu() for t in self._unlogged)])
        self._unlogged = [losses]
        return losses


def refuse_used(out: str | os.PathLike) -> None:
    """Raise FileExistsError if a directory already holds a run."""
    for name in (checkpoint.FILE, LOG, CONFIG):
        if Path(out, name).exists():
            raise FileExistsError(
                f"out: {out} already holds a run; continue it with resume, or choose another name"
            )


def _head(path: Path, lines: int) -> list[str]:
    if not path.exists():
        return []
    with open(path) as file:
        return [line for _, line in zip(range(lines), file, strict=False)]
