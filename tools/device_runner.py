"""Runs parts of a plan within the time that is left, and keeps what they said."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from device_parts import ROOT, Part, groups, kept

GRACE = 12.0  # between asking a part to end, in which it saves what it has, and ending it
LEAST = 5.0  # seconds with which a part can be begun
MOST_TEXT = 500_000  # characters of a part's output that are kept, of both its ends


class Runner:
    """Runs parts, each in a process group of its own; `outcomes` says how they ended."""

    def __init__(self, out: Path, limit: float, has_gpu: bool, say=print):
        self.out, self.has_gpu, self.say = out, has_gpu, say
        self.end = time.monotonic() + limit
        self.outcomes: list[dict] = []
        # Toolkits put their tools here, and not always on the path.
        tools = [str(place) for place in Path("/opt/nvidia").glob("nsight-compute/*")]
        homes = dict.fromkeys([os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"])
        for home in filter(None, homes):
            tools += [str(Path(home, "bin")), str(Path(home, "compute-sanitizer"))]
        self.environment = dict(os.environ) | {
            "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), *tools]),
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
            ),
            "PYTHONUNBUFFERED": "1",
        }

    def run(self, chosen: list[Part]) -> None:
        """Run parts, side by side where they may, and leave to the later ones what is theirs."""
        following = groups(chosen)
        while following:
            group, following = following[0], following[1:]
            self.run_group(group, self.end - kept(following))

    def run_group(self, group: list[Part], end: float) -> None:
        """Run parts side by side, until `end` at the latest, and note how each ended."""
        running = []
        for part in group:
            reason = self._why_not(part, end)
            if reason:
                self._note(part, reason, 0.0, "")
                continue
            log = open(self.out / f".{part.name.replace(' ', '-')}.log", "w+b")  # noqa: SIM115
            allowed = min(part.seconds, end - time.monotonic())
            self.say(f"{part.name}: at most {max(allowed, 0):.0f} s")
            process = subprocess.Popen(
                part.command,
                cwd=ROOT,
                env=self.environment | part.env,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            running.append((part, process, log, time.monotonic()))
        last, asked = {}, {part.name: 0 for part, *_ in running}
        deadline = {part.name: min(begun + part.seconds, end) for part, _, _, begun in running}
        while len(last) < len(running):
            for part, process, _, begun in running:
                if part.name in last:
                    continue
                late = time.monotonic() - deadline[part.name]
                code = process.poll()
                if code is not None or late > 2 * GRACE:
                    how = "TIMED OUT" if asked[part.name] else _ended(code)
                    last[part.name] = (how, time.monotonic() - begun)
                # Asked first, then ended, and neither holds up those beside it.
                elif late > asked[part.name] * GRACE:
                    number = signal.SIGKILL if asked[part.name] else signal.SIGTERM
                    asked[part.name] += 1
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, number)
            time.sleep(0.05)
        for part, process, _, _ in running:
            if asked[part.name]:
                # What it has started does not run on beside the next part.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        for part, _, log, _ in running:
            with log:
                log.seek(0)
                text = log.read().decode(errors="replace")
            Path(log.name).unlink()
            self._note(part, *last[part.name], text)

    def _why_not(self, part: Part, end: float) -> str | None:
        if part.gpu and not self.has_gpu:
            return "SKIPPED: no GPU"
        if shutil.which(part.command[0], path=self.environment["PATH"]) is None:
            return f"SKIPPED: {part.command[0]} is not on the path"
        if end - time.monotonic() < LEAST:
            return "SKIPPED: no time left"
        return None

    def _note(self, part: Part, how: str, seconds: float, text: str) -> None:
        said = [line for line in text.splitlines() if line.strip()]
        if len(text) > MOST_TEXT:
            half = MOST_TEXT // 2
            left_out = f"\n[{len(text) - MOST_TEXT} characters left out]\n"
            text = text[:half] + left_out + text[-half:]
        self.outcomes.append(
            {
                "part": part.name,
                "outcome": how,
                "seconds": round(seconds, 1),
                "last": said[-1][:160] if said else "",
                "command": part.command,
            }
        )
        self.say(f"{part.name}: {how} after {seconds:.0f} s")
        with open(self.out / "logs.txt", "a") as file:
            file.write(f"\n===== {part.name}: {how}, {seconds:.1f} s\n{text}\n")
        # Kept up to date: what was learned survives whatever ends this program.
        (self.out / "summary.json").write_text(json.dumps(self.outcomes, indent=1) + "\n")


def _ended(code: int) -> str:
    # bench.py and its kin: a GPU that is not there, which is no failure.
    return {0: "ok", 3: "SKIPPED: no GPU"}.get(code, f"FAILED ({code})")
