"""Takes the times: every peer in turn, in short blocks, over the same minutes.

Machines drift: clocks, neighbours and the distance between two virtual cores change from minute to
minute, so peers timed one after the other cannot be compared. Here every round gives every peer a
few short blocks, in an order that changes with the round, and each peer's process is stopped while
the others run.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gpu
import machine
from peers import Entry
from plans import Plan
from processes import Dead, Inline, Process

BLOCK_SECONDS = 0.08  # long against a time slice, short against the machine's drift
BLOCKS_A_TURN = 3
SETTLE_SECONDS = 0.03  # after another process had the caches
WARM_SECONDS = 0.4
DISTURBED = 0.15  # cores that other processes may use before a turn is set aside
ROUNDS = 7  # of the question what a busy neighbour costs
PAIRS = 21  # of the question what a call costs: single steps beside as many in one call
CALLS = 1000  # steps of one of a pair, or fewer that take PAIR_SECONDS
PAIR_SECONDS = 0.2


class Field:
    """All the peers of a run."""

    def __init__(
        self,
        entries: list[Entry],
        threads: int,
        *,
        device: str = "cpu",
        patience: float | None = None,
        inline: bool = False,
        say=print,
    ):
        self.threads = threads
        self.device = device
        self.inline = inline
        self.say = say
        self.cpus = machine.pick_cpus(threads)
        kind = Inline if inline else Process
        self.peers = {
            entry.name: kind(entry, threads, self.cpus, device, patience) for entry in entries
        }
        for peer in self.peers.values():
            with peer.turn():
                pass
        self.missing: dict[str, str] = {}
        self.interrupted = False  # in a race, whose turns until then are kept

    def __enter__(self) -> Field:
        return self

    def __exit__(self, *_) -> None:
        # All of them first: with a GPU, a process takes seconds to end.
        for peer in self.peers.values():
            peer.kill()
        for peer in self.peers.values():
            peer.end()

    def prepare(self, plan: Plan) -> dict[str, dict]:
        """Set every peer up for a plan; what each said, or {"missing": reason}."""

        def setup(name: str) -> dict:
            if name in self.missing:
                return {"missing": self.missing[name]}
            try:
                with self.peers[name].turn() as peer:
                    return peer.ask("setup", plan.to_fields(), self.threads)
            except Dead as reason:
                self.missing[name] = str(reason)
                return {"missing": str(reason)}

        # Compilers take most of this time and use one core each, so the peers share the cores.
        together = [
            name for name, peer in self.peers.items() if self.device not in peer.entry.alone
        ]
        with ThreadPoolExecutor(1 if self.inline else self.threads) as pool:
            answers = dict(zip(together, pool.map(setup, together), strict=True))
        out = {name: answers[name] if name in answers else setup(name) for name in self.peers}
        for name, answer in out.items():
            if "missing" not in answer:
                try:
                    with self.peers[name].turn() as peer:
                        answer["step"] = peer.ask("warm", WARM_SECONDS)
                except Dead as reason:
                    answer["missing"] = self.missing[name] = str(reason)
            if "missing" in answer:
                self.say(f"  {name}: missing ({answer['missing']})")
            else:
                step = f"about {answer['step'] * 1e3:.3f} ms a step"
                self.say(f"  {name}: ready in {answer['seconds']:.1f} s, {step}")
        return out

    def race(self, plan: Plan, seconds: float) -> dict[str, dict]:
        """Time every peer on a plan, ``seconds`` each, in turns. Name -> result or {"missing"}.

        A result: best, median, q1, q3 (seconds a step, over the blocks of the turns kept), blocks,
        steps, cores_used (cpu seconds over wall seconds), others (cores that other processes used
        meanwhile: median and most), turns, turns_calm, turns_kept, setup_seconds, d_loss, g_loss,
        how. An interrupt ends the race with what has been measured, and sets `interrupted`.
        """
        results = self.prepare(plan)
        racing = {name: r for name, r in results.items() if "missing" not in r}
        for result in racing.values():
            result |= {"turns": [], "steps": 0, "wall": 0.0, "cpu": 0.0}
        shuffle = random.Random(plan.seed)
        turn_seconds = BLOCK_SECONDS * BLOCKS_A_TURN
        try:
            for _ in range(max(3, round(seconds / turn_seconds))):
                for name in shuffle.sample(sorted(racing), len(racing)):
                    self._turn(name, racing, results)
        except KeyboardInterrupt:
            self.interrupted = True
        for name, result in racing.items():
            if "missing" in results[name]:
                continue
            if self.interrupted:
                # The signal may have ended the peers as well: nothing more is asked of them.
                if sum(len(times) for times, _ in result["turns"]) > 1:
                    results[name] = summary(result) | {"error": "interrupted: fewer turns"}
                else:
                    results[name] = {"missing": "interrupted before it was timed twice"}
                continue
            try:
                with self.peers[name].turn():
                    check = self.peers[name].ask("check")
            except Dead as reason:
                check = {"error": str(reason)}
            results[name] = summary(result) | check
        return results

    def _turn(self, name: str, racing: dict, results: dict) -> None:
        result, peer = racing[name], self.peers[name]
        if "missing" in results[name]:
            return
        try:
            with peer.turn():
                # The fastest seen so far sets the length of a block: an estimate taken while
                # something else ran would make the blocks short, and short blocks are noisy.
                result["step"] = min(result["step"], peer.ask("warm", SETTLE_SECONDS))
                grain = result["granularity"]
                n = grain * max(1, round(BLOCK_SECONDS / result["step"] / grain))
                # Very long steps: one block a turn, or a round would take minutes.
                count = 1 if result["step"] * n > 3 * BLOCK_SECONDS else BLOCKS_A_TURN
                busy = busy_seconds()
                times, cpu = peer.ask("blocks", n, count)
                others = _others(busy, cpu, sum(times))
        except Dead as reason:
            self.missing[name] = str(reason)
            results[name] = {"missing": str(reason)}
            return
        result["turns"].append(([t / n for t in times], others))
        result["steps"] += n * count
        result["wall"] += sum(times)
        result["cpu"] += cpu

    def overhead(self, plan: Plan) -> dict[str, dict]:
        """What a call of run(1) costs beyond a step inside run(1000), microseconds."""
        results = self.prepare(plan)
        for name, result in results.items():
            if "missing" in result:
                continue
            if result["granularity"] > 1:
                steps_a_call = result["granularity"]
                results[name] = {"missing": f"has no run(1): it does {steps_a_call} steps a call"}
                continue
            n = max(20, min(CALLS, round(PAIR_SECONDS / result["step"])))
            singles, together, others = [], [], []
            try:
                with self.peers[name].turn() as peer:
                    peer.ask("warm", WARM_SECONDS)
                    for number in range(PAIRS):
                        busy = busy_seconds()
                        # The other way round every time, so that a drift falls on both.
                        if number % 2:
                            (block,), more = peer.ask("blocks", n, 1)
                        calls, cpu = peer.ask("calls", n)
                        if not number % 2:
                            (block,), more = peer.ask("blocks", n, 1)
                        singles.append(calls / n)
                        together.append(block / n)
                        others.append(_others(busy, cpu + more, calls + block))
            except Dead as reason:
                results[name] = {"missing": str(reason)}
                continue
            extra = [(a - b) * 1e6 for a, b in zip(singles, together, strict=True)]
            q1, median, q3 = statistics.quantiles(extra, n=4, method="inclusive")
            results[name] = {
                "calls": n,
                "pairs": len(extra),
                "single_ms": statistics.median(singles) * 1e3,
                "together_ms": statistics.median(together) * 1e3,
                "extra_us": median,
                "extra_us_quartiles": [q1, q3],
                "others": _median(others),
            }
        return results

    def contended(self, plan: Plan) -> dict[str, dict]:
        """How much slower a step is while one other process burns one of the same cores."""
        results = self.prepare(plan)
        burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(burner.pid, self.cpus)
            burner.send_signal(signal.SIGSTOP)
            for name, result in results.items():
                if "missing" in result:
                    continue
                grain = result["granularity"]
                # A second or so: the scheduler deals in slices of milliseconds.
                n = grain * max(1, round(0.25 / result["step"] / grain))
                quiet, contended, others = [], [], []
                try:
                    with self.peers[name].turn() as peer:
                        for _ in range(ROUNDS):
                            peer.ask("warm", SETTLE_SECONDS)
                            busy = busy_seconds()
                            (block,), cpu = peer.ask("blocks", n, 1)
                            others.append(_others(busy, cpu, block))
                            quiet.append(block / n)
                            burner.send_signal(signal.SIGCONT)
                            peer.ask("warm", SETTLE_SECONDS)
                            contended.append(peer.ask("blocks", n, 1)[0][0] / n)
                            burner.send_signal(signal.SIGSTOP)
                except Dead as reason:
                    results[name] = {"missing": str(reason)}
                    continue
                finally:
                    burner.send_signal(signal.SIGSTOP)
                results[name] = {
                    "quiet_ms": statistics.median(quiet) * 1e3,
                    "contended_ms": statistics.median(contended) * 1e3,
                    "worst_ms": max(contended) * 1e3,
                    "slowdown": statistics.median(contended) / statistics.median(quiet),
                    "others": _median(others),
                }
        finally:
            burner.kill()
            burner.wait()
        return results

    def profile(self, plan: Plan, seconds: float = 1.0) -> dict[str, dict]:
        """The phases of a step: {"steps", "seconds", "phases"}, as worker.Host.profile."""
        results = self.prepare(plan)
        for name, result in results.items():
            if "missing" in result:
                continue
            steps = max(1, round(seconds / result["step"]))
            if self.device == "cuda":  # every kernel of every step is written down
                steps = min(steps, 100)
            try:
                with self.peers[name].turn() as peer:
                    answer = peer.ask("profile", steps)
            except Dead as reason:
                answer = {"missing": str(reason)}
            results[name] = answer | {"steps": steps}
        return results


def summary(result: dict) -> dict:
    """The statistics of a race's samples."""
    turns = result["turns"]
    others = [busy for _, busy in turns if busy is not None]
    calm = [samples for samples, busy in turns if busy is None or busy <= DISTURBED]
    # Too few calm turns would be a choice of the lucky ones: then all count, and the report warns.
    kept = calm if len(calm) >= max(3, len(turns) / 3) else [samples for samples, _ in turns]
    samples = sorted(sample for turn in kept for sample in turn)
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return {
        "best": samples[0],
        "median": median,
        "q1": q1,
        "q3": q3,
        "blocks": len(samples),
        "steps": result["steps"],
        "cores_used": round(result["cpu"] / result["wall"], 3),
        "turns": len(turns),
        "turns_kept": len(kept),
        "turns_calm": len(calm),
        "others": round(statistics.median(others), 3) if others else None,
        "others_most": round(max(others), 3) if others else None,
        "setup_seconds": round(result["seconds"], 2),
    }


def ratios(results: dict[str, dict], entries: list[Entry]) -> dict[str, dict]:
    """For each engine of fastgan: peer -> {"best", "median"}, how many times as long it takes."""
    timed = {name: r for name, r in results.items() if "median" in r}
    return {
        entry.name: {
            name: {key: r[key] / timed[entry.name][key] for key in ("best", "median")}
            for name, r in timed.items()
        }
        for entry in entries
        if entry.ours and entry.name in timed
    }


def busy_seconds() -> float | None:
    """Cpu seconds that all processes of this machine have used so far (Linux)."""
    try:
        line = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = (int(x) for x in line[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _others(busy_before: float | None, cpu: float, wall: float) -> float | None:
    """Cores that others used since ``busy_before``, while the peer used ``cpu`` seconds."""
    if busy_before is None:
        return None
    return max(0.0, busy_seconds() - busy_before - cpu) / wall


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 3) if known else None


def surroundings(device: str = "cpu") -> dict:
    """What changes within a run: load, the distance between the cores, a GPU's clocks."""
    out = {"time": time.strftime("%H:%M:%S", time.gmtime()), "load": machine.load()}
    try:
        out["roundtrip_ns"] = machine.roundtrip_ns()
    except machine.Missing as reason:
        out["roundtrip_missing"] = str(reason)
    return out | gpu_state(device)


def gpu_state(device: str) -> dict:
    """{"gpu": its clocks and temperature now}, or why not; nothing on the cpu."""
    if device != "cuda":
        return {}
    try:
        return {"gpu": gpu.state()}
    except machine.Missing as reason:
        return {"gpu_missing": str(reason)}
