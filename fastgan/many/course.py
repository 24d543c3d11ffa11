"""One call of `Ensemble.fit`: which members are trained, which at once, and what they leave."""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from fastgan import loop, resuming
from fastgan.callbacks import Console, NonFiniteLossError
from fastgan.engines.turns import Turns
from fastgan.many.members import Member
from fastgan.run import checkpoint, directory
from fastgan.run.signals import Signals
from fastgan.trainer import Trainer

if TYPE_CHECKING:
    from fastgan.many.ensemble import Ensemble

logger = logging.getLogger("fastgan")

LOG = "ensemble.jsonl"
_STOPPED = "the ensemble"


class Course:
    """Trains members until their limits, or until a signal says stop.

    Attributes:
        at_work: whether members are being trained.
        stopping: whether they are to end after the steps at hand.
    """

    def __init__(self, ensemble: Ensemble, limits: dict[str, Any], until: str | Callable | None):
        """Nothing is done before `run`."""
        self.ensemble, self.limits, self.until = ensemble, limits, until
        self._signals = Signals()
        self._ended: BaseException | None = None
        self._log: BinaryIO | None = None
        self.at_work = False

    def run(self) -> None:
        """Do it; see `Ensemble.fit`."""
        whole = self.ensemble
        waiting = self._waiting()
        with ExitStack() as stack:
            stack.callback(setattr, self, "at_work", False)
            self.at_work = True
            if whole.out is not None:
                stack.enter_context(directory.at_work(whole.out, new=False))
                self._begin(waiting)
                self._log = stack.enter_context(open(whole.out / LOG, "ab"))
            stack.enter_context(self._signals)
            self._train([member for member in waiting if member.status != "failed"])
            whole.keep()
        if self._signals.received:
            self._signals.deliver(self._stopped_message())

    @property
    def stopping(self) -> bool:
        """Whether a signal has come, or a member has ended the program."""
        return self._signals.received is not None or self._ended is not None

    def _waiting(self) -> list[Member]:
        """The members that have something left to do."""
        own = None if self.until is None else "own"
        goal = {**self.limits, "until": self.until if isinstance(self.until, str) else own}
        same = all(value is None for value in goal.values())
        if goal == self.ensemble.goal:  # after a resume nobody can tell one function from another
            same = self.ensemble.until in (None, self.until)
        waiting = []
        for member in self.ensemble.members:
            t = member.trainer
            if member.status == "diverged":
                continue
            t.goal, t.target = loop.goal_of(t, self.limits, self.until)
            if t.target is not None and t.step >= t.target:
                member.status = "done"
            elif not (same and member.status == "done"):
                member.status = "begun" if t.step else "waiting"
                waiting.append(member)
        if not same:
            self.ensemble.goal, self.ensemble.until = goal, self.until
        return waiting

    def _begin(self, waiting: Sequence[Member]) -> None:
        """Save every member before the first step of any, so that all can be continued."""
        self.ensemble.keep()
        for member in waiting:
            if member.trainer.saved_step is None:
                try:
                    member.trainer.save()
                except Exception as error:
                    self._failed(member, error)
        lines = []
        for member in self.ensemble.members:
            t = member.trainer
            # What the end of a call wrote between two intervals is taken back when the run goes on.
            own = [line for line in t.history if line["step"] % t.config.log_every == 0]
            if member not in waiting and member.line.get("step", 0) > (
                own[-1]["step"] if own else 0
            ):
                own.append(member.line)
            lines += [_line(member, line) for line in own]
        (self.ensemble.out / LOG).write_bytes(b"".join(lines))

    def _train(self, waiting: Sequence[Member]) -> None:
        several: dict[Hashable | None, list[Member]] = {}
        for member in waiting:
            if member.beside:
                several.setdefault(member.trainer.engine.company, []).append(member)
        single = [member for member in waiting if not member.beside]
        before, shown = torch.get_num_threads(), self.ensemble.progress
        shown.start(self.ensemble.members)
        try:
            for company, members in several.items():
                if not self.stopping:
                    self._at_once(members, together=company is not None)
            if single and not self.stopping:
                said = single[0].trainer.explanation
                shown.say(f"{_count(single)} one after the other: {said}")
            for member in single:
                if self.stopping:
                    break
                with threads(member.trainer.config.threads or before):
                    self._one(member)
                shown.show()
        finally:
            shown.end()
        if self._ended is not None:
            raise self._ended
        out = self.ensemble.out
        shown.say(f"{shown.line()}{'' if out is None else f'; look at {out}'}")

    def _at_once(self, members: Sequence[Member], *, together: bool) -> None:
        """Train members in threads, each from its beginning to its end.

        Args:
            members: of one company.
            together: whether their steps go to a device in one launch, or each thread does its own.
        """
        for member in members:
            t = member.trainer
            t.explanation = f"engine {t.engine.name}: {t.engine.describe()}"
        first, count = members[0].trainer, self._places(members, together)
        way = f"{count} at once{' in one launch' if together else ''}"
        self.ensemble.progress.say(f"{_count(members)}, {way}: {first.explanation}")
        gang = first.engine.gang(count) if together else None
        turns, queue = Turns(), deque(members)

        def work() -> None:
            with nullcontext() if gang is None else gang.joined():
                while queue and not self.stopping:
                    try:
                        member = queue.popleft()
                    except IndexError:  # another thread has just taken the last
                        return
                    try:
                        with turns.taken(member.trainer.random_states.outside):
                            self._one(member)
                    except BaseException as error:  # of a callback that ends the program
                        self._ended = error

        workers = [threading.Thread(target=work, name=f"fastgan {i}") for i in range(count)]
        try:
            with threads(torch.get_num_threads() if together else 1):
                for worker in workers:
                    worker.start()
                for worker in workers:
                    while worker.is_alive():
                        worker.join(0.1)
                        self.ensemble.progress.show()
        except BaseException as error:
            self._ended = error
            raise

    def _places(self, members: Sequence[Member], together: bool) -> int:
        """How many of some members are trained at once."""
        asked, count = self.ensemble.at_once, len(members)
        if not together:
            return min(asked or torch.get_num_threads(), count)
        most = min(member.trainer.engine.most_at_once for member in members)
        # As evenly as they go into so many launches: fewer members have more of the device each.
        return min(asked or -(-count // -(-count // most)), most, count)

    def _one(self, member: Member) -> None:
        t = member.trainer
        member.status, member.reason = "begun", None
        try:
            t.fit(**self.limits, until=self.until)
            over = t.target is not None and t.step >= t.target
            if over or not (self.stopping and t.stopped in (_STOPPED, *self._heard())):
                member.status = "done"
        except NonFiniteLossError as error:
            self._failed(member, error, "diverged")
        except Exception as error:
            self._failed(member, error)
        finally:
            t.close()
            member.line = dict(t.history[-1]) if t.history else {}
            self.ensemble.keep()

    def _heard(self) -> tuple[str, ...]:
        return () if self._signals.received is None else (self._signals.name,)

    @staticmethod
    def _failed(member: Member, error: Exception, status: str = "failed") -> None:
        line, trace = checkpoint.first_line(error), None
        if status == "failed":
            line, trace = f"{type(error).__name__}: {line}", error
        member.status, member.reason = status, line
        logger.warning("member %s %s: %s", member.name, status, line, exc_info=trace)

    def told(self, member: Member, line: dict[str, Any]) -> None:
        """A member has written a line into its log."""
        # After a second Ctrl-C members save while nobody waits for them.
        if self._log is not None and not self._log.closed:
            self._log.write(_line(member, line))
            self._log.flush()

    def _stopped_message(self) -> str:
        whole = self.ensemble
        said = f"stopped by {self._signals.name}; {whole.progress.counts()}"
        if whole.out is None:
            return f"{said}; nothing was saved (out is None)"
        way = f"fastgan sweep --resume {whole.out}"
        if resuming.needed(resuming.state_of(whole.members[0].trainer)):
            way = f"fastgan.Ensemble.resume({str(whole.out)!r}, ...) with what it was made of"
        return f"{said}; all are saved. To continue: {way}"


class Watch(Console):
    """Ties a member to the whole, and stands in the place of the run's own console."""

    name = "Ensemble"

    def __init__(self, ensemble: Ensemble, i: int):
        """The member's number says which it is."""
        super().__init__("none")
        self.ensemble, self.i = ensemble, i

    def start(self, trainer: Trainer) -> None:
        """Lines up to here are in the log of the whole."""
        self._step = trainer.step

    def chunk(self, trainer: Trainer, statistics: torch.Tensor) -> None:
        """Hand a new line on, and end the run if all are to end."""
        self._tell(trainer)
        if self.ensemble.course.stopping and trainer.stopped is None:
            trainer.stop(_STOPPED)

    def end(self, trainer: Trainer, error: BaseException | None) -> None:
        """Hand the last line on."""
        self._tell(trainer)

    def _tell(self, trainer: Trainer) -> None:
        if trainer.history and trainer.history[-1]["step"] > self._step:
            self._step = trainer.history[-1]["step"]
            self.ensemble.course.told(self.ensemble.members[self.i], trainer.history[-1])


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch has so many threads meanwhile, in threads that begin as well; then those of before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _count(members: Sequence[Member]) -> str:
    return f"{len(members)} member{'s' * (len(members) > 1)}"


def _line(member: Member, line: dict[str, Any]) -> bytes:
    return json.dumps({"member": member.name, **line}).encode() + b"\n"
