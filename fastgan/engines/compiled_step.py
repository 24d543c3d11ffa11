"""The alternating step with each update's losses and gradients as one compiled function.

What an update does below autograd is traced, penalties (gradients of gradients) included, and the
trace compiled; the gradients that it returns are the optimiser's, as in `eager`. Everything that
an update works with is an input: weights and statistics by reference, and what changes from step to
step (samples, conditions, latents, masks) drawn by the host as `eager` draws it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastgan import torch_graphs
from fastgan.data.batch import Batch, map_condition
from fastgan.engines import agree, inductor, kept, probe, recorded, reentrant
from fastgan.engines.base import CannotRun
from fastgan.engines.capture import Watch
from fastgan.engines.draws import Counter
from fastgan.engines.functions import Function, Key, Outputs, keys_of, moving_of
from fastgan.engines.halves import Halves, halved
from fastgan.engines.noted_draws import Drawer, Noting
from fastgan.engines.rehearsal import own_state, untouched
from fastgan.engines.shapes import StepShape, shape_of
from fastgan.engines.snapshot import Snapshot
from fastgan.engines.step import Step
from fastgan.engines.updates import gradients_aside, together

if TYPE_CHECKING:
    from fastgan.problem import Problem

_FIRST, _LAST = Counter(1, 0), Counter(2, 1)
"""While functions are made: the update at hand, and D's last one, whose draws G's shares."""
_ORDER = (
    "shared_fakes: D's loss asks for step.fake not at all, or after another pass of G or a number "
    "that torch has drawn, and a compiled step makes these samples before all else"
)
_TRIALS, _LONG = 3, 0.5
"""How often a function is timed, besides the calls that it is checked by; not again after so many
seconds."""
_MOST = 20_000
"""Steps looked ahead for the updates that a run has; what comes later is compiled then."""


class CompiledStep(Step):
    """A step whose updates are compiled functions; the rest of it is `Step`'s.

    Attributes:
        functions: those that there are, by what they are for.
    """

    traces = True
    compiler = staticmethod(inductor.compiled)
    draws: Noting

    def __init__(self, problem: Problem, draws: Noting, *updates: Any):
        """Nothing is compiled yet."""
        super().__init__(problem, draws, *updates)
        self.functions: dict[Key, Function] = {}
        self._rest: Callable[[], list[Tensor]] | None = None  # of G's update, once D's is done

    def prepare(self, first: int) -> None:
        """Compile, inside `in_place`, all updates that a run from this step on has.

        Raises:
            CannotRun: one of them cannot be traced or compiled, or computes something else then.
        """
        for step in range(first, first + _period(self.problem)):
            self._have(shape_of(self.problem, step))

    def milliseconds(self, step: int) -> tuple[float, float]:
        """What a step's losses and gradients take without the compiler and with it."""
        p, functions = self.problem, self.functions
        keys = keys_of(p, shape_of(p, step))
        each = [[1e3 * second for second in functions[key].seconds] for key in keys]
        before, after = map(sum, zip(*each, strict=True))
        return before, after

    def said(self, seconds: float, step: int) -> str:
        """What there is to say of the functions of a step, which took so long to make."""
        functions = self.functions.values()
        known = sum(function.kept for function in functions)
        taken = self._convolutions.taken
        new = f"{len(functions) - known} functions{'' if taken else ' compiled'}"
        made = new if known < len(functions) else ""
        again = f"{known} kept from an earlier run" if known else ""
        took = " and ".join(filter(None, (made, again)))
        before, after = self.milliseconds(step)
        return (
            f"losses and gradients {'recorded' if taken else 'by TorchInductor'} ({took}, "
            f"{seconds:.1f} s; {after:.3g} ms a step, {before:.3g} without)"
        )

    def __call__(self, shape: StepShape) -> tuple[Tensor, ...]:
        """See `Step`."""
        self._have(shape)
        return super().__call__(shape)

    def _have(self, shape: StepShape) -> None:
        for key in keys_of(self.problem, shape):
            if key not in self.functions:
                self.functions[key] = self._compiled(key)

    def _update(
        self, player: str, counter: Counter, size: int, batch: Batch, due: tuple[bool, ...] = (),
        *, shares: bool = False,
    ) -> list[Tensor]:  # fmt: skip
        key = Key(player, size, due, shares)
        function = self.functions[key]
        if key.in_halves:
            with torch.no_grad():
                found = function.split(self._rest())
            self._rest = None
        elif shares:
            of_g = self.functions[Key("g", size, shares=True)]
            fake, self._rest = of_g.begin(Counter(self.problem.g_steps, 0), batch)
            found = function(counter, batch, fake)
        else:
            found = function(counter, batch)
        self.logged |= found.logged
        if player == "d":
            self.measures.score(1.0, found.scores)
        own = self._updates_of(player)
        for w, gradient in zip(function.weights, found.gradients, strict=True):
            w.grad = gradient
        for w in function.others:
            w.grad = None
        if player == "joint":
            together(own, size)
        else:
            own[0].use(size)
        return found.statistics

    def _updates_of(self, player: str) -> list[Any]:
        return [u for u, name in zip(self.updates, "dg", strict=True) if player in (name, "joint")]

    # --- compiling -------------------------------------------------------------------------------

    def _compiled(self, key: Key) -> Function:
        p, draws = self.problem, self.draws
        condition = probe.condition(p, key.size) if p.uses_conditions else None
        whole = Batch(probe.samples(p, key.size), condition)
        draws.pretend(whole)
        rows = draws.rows(key.size)
        batch = Batch(*map_condition(lambda part: part[rows.start : rows.stop], whole))
        images = batch.images.to(self.dtypes[0], memory_format=draws.memory_format)
        batch = batch._replace(images=images)
        state = _state_of(p)
        given = self._samples(key, batch, state) if key.shares and key.player == "d" else []
        orders: list[int] = []  # passes of G before each asking for the samples that are shared
        before = _generators(p.device)

        def asked(passes: int) -> None:
            drawn = not torch.equal(before, _generators(p.device))
            orders.append(passes + drawn)

        with self._rehearsed(key, state):
            with draws.noting() as notes:
                expected = self._flat(key, batch, given, asked)
            if given and orders != [0]:
                raise CannotRun(_ORDER)
            expected_state = [t.detach().clone() for t in state]
            torchs = _generators(p.device)
        if any(made._version for made in given):
            raise CannotRun(
                "shared_fakes: D's loss writes into the samples, which G's update needs"
            )
        drawn = [drawer(counter) for drawer, counter in notes]
        drawers = [self._drawer(*note) for note in notes]
        moving = moving_of(batch, [*drawn, *given])

        def work(*_: Tensor) -> list[Tensor]:
            with draws.giving(drawn):
                return self._flat(key, batch, given).values

        inputs = list({id(t): t for t in (*moving, *state)}.values())
        graph, inputs = self._trace(key, work, inputs, state)
        try:
            with untouched(p, state), torch.no_grad():
                code, known = self._code(key, graph, inputs)
            with untouched(p, state), torch.no_grad():
                found = list(code(*inputs))
                found_state = [t.detach().clone() for t in state]
                same = torch.equal(_generators(p.device), torchs)
        except CannotRun:
            raise
        except Exception as error:
            raise CannotRun(f"{key} cannot be compiled ({probe.first_line(error)})") from error
        # Scores are in the losses; their own length would make the losses' errors small.
        last = len(found) - expected.scores
        outputs, states = (expected.values[:last], found[:last]), (expected_state, found_state)

        def otherwise() -> list[Tensor]:
            with untouched(p, state), self._convolutions.aside(), draws.giving(drawn):
                return self._flat(key, batch, given).values

        other = otherwise if self._convolutions.taken else None
        try:
            far = agree.compare(key, p.precision, len(expected.weights), outputs, states, other)
        except RuntimeError as error:  # a sample that is a view of a weight, say
            raise CannotRun(f"{key} cannot be compared ({probe.first_line(error)})") from error
        if not same:
            raise CannotRun(f"{key}, compiled, draws other random numbers than without a compiler")
        with untouched(p, state):
            seconds = _best(lambda: work()), _best(lambda: code(*inputs), torch.no_grad())
        places = {id(t): i for i, t in enumerate(moving)}
        return Function(
            code, [places.get(id(t), t) for t in inputs], [t.stride() for t in moving], drawers,
            expected.weights, expected.others, expected.statistics, expected.logged, known,
            seconds, far,
        )  # fmt: skip

    @contextmanager
    def _rehearsed(self, key: Key, state: list[Tensor]) -> Iterator[None]:
        """The update is done for the first time, and does nothing that a trace cannot repeat."""
        p = self.problem
        networks = {"generator": p.generator, "discriminator": p.discriminator}
        weights = [*state, *(w for update in self.updates for w in update.weights())]
        weights = list({id(w): w for w in weights if w.requires_grad and w.is_leaf}.values())
        with untouched(p, state), probe.randomness_kept(p.device), gradients_aside(weights):
            before = Snapshot(networks, also=lambda: own_state(p))
            self.draws.asked, drawn = False, probe.drawn()[:2]
            yield
            reentrant.require_none(str(key), weights)
            reason = None
            if probe.drawn()[:2] != drawn:
                reason = "something is drawn from Python's or NumPy's generator; use torch's"
            if self.draws.asked:
                reason = "the method or a term asks for the number of the step"
            if difference := before.difference():
                reason = f"{difference} by a pass; write into a buffer instead, as copy_() does"
        if reason:
            raise CannotRun(f"{key} would be the same in every step, and is not: {reason}")

    def _samples(self, key: Key, batch: Batch, state: list[Tensor]) -> list[Tensor]:
        """G's, for an update of D that is given them."""
        p = self.problem
        with untouched(p, state), probe.randomness_kept(p.device), torch.no_grad():
            made = self._context("d", _LAST, key.size, batch).fake
            if not isinstance(made, Tensor):
                raise CannotRun("shared_fakes: what G makes is more than one tensor")
            return [made.clone()]  # which nobody has written into yet

    def _drawer(self, drawer: Drawer, noted: Counter) -> Drawer:
        """What draws for an update; what D's last one drew, if it is that one's."""
        d_steps = self.problem.d_steps
        return drawer if noted != _LAST else lambda _: drawer(Counter(d_steps, d_steps - 1))

    def _code(
        self, key: Key, graph: torch.fx.GraphModule, inputs: list[Tensor]
    ) -> tuple[Callable[..., list[Tensor]], bool]:
        """A trace's code, and whether it had been kept."""
        taken, d = self._convolutions.taken, self.problem.discriminator
        if taken:
            graph = recorded.simplified(graph, inputs)
        if not key.in_halves:
            if taken:
                return recorded.called(graph), False
            return kept.code_of(graph, inputs, self.compiler)
        moved = [w for w in d.parameters() if w.requires_grad]
        first, second, own = halved(graph, inputs, {id(t) for t in (*moved, *d.buffers())})
        if taken:
            return Halves(recorded.called(first), recorded.called(second), own), False
        inputs, others = ([inputs[i] for i in places] for places in own)
        of_first, known = kept.code_of(first, inputs, self.compiler)
        of_second, also = kept.code_of(second, [*first(*inputs), *others], self.compiler)
        return Halves(of_first, of_second, own), known and also

    def _flat(
        self, key: Key, batch: Batch, given: list[Tensor],
        asked: Callable[[int], None] = lambda passes: None,
    ) -> Outputs:  # fmt: skip
        """An update's gradients, statistics and logged numbers, by autograd.

        Samples that it shares, in G's update, are the last of them, and made before all else.
        """
        p = self.problem
        with self._alone(key.player):
            if key.in_halves:
                self._shared = self._context("d", _LAST, key.size, batch, shares=True)
                made = self._shared.made.detach()
            context = self._context(key.player, _FIRST, key.size, batch, key.due, shares=key.shares)
            self._shared = None
            if given:
                context.give(*given, asked)
            loss, found = self._evaluated(context)
            with self.in_backward():
                groups = [w for u in self._updates_of(key.player) for w in u.weights()]
                weights = list({id(w): w for w in groups if w.requires_grad}.values())
                if p.world.size > 1:
                    loss = loss * p.world.share(key.size)
                with reentrant.told(str(key), "use engine='eager'", CannotRun):
                    slopes = torch.autograd.grad(loss, weights, allow_unused=True)
        missing = [w for w, g in zip(weights, slopes, strict=True) if g is None]
        zeros = {id(w): torch.zeros_like(w) for w in self._convolutions.zeros(loss, missing)}
        slopes = [zeros.get(id(w), g) for w, g in zip(weights, slopes, strict=True)]
        used = [w for w, g in zip(weights, slopes, strict=True) if g is not None]
        # As autograd lays them down: optimisers ask for the strides of their weights.
        slopes = [
            g if g.stride() == w.stride() else torch.empty_like(w, requires_grad=False).copy_(g)
            for w, g in zip(weights, slopes, strict=True)
            if g is not None
        ]
        scores, samples = [], [made] if key.in_halves else []
        if key.player == "d":
            nan = torch.full_like(found[0], math.nan).view(1)
            scores = [nan if s is None else s for s in context.scores]
        return Outputs(
            [*slopes, *found, *context.logged.values(), *scores, *samples],
            used, [w for w in groups if all(w is not u for u in used)], len(found),
            list(context.logged), len(scores),
        )  # fmt: skip

    def _trace(
        self, key: Key, work: Callable, inputs: list[Tensor], state: list[Tensor]
    ) -> tuple[torch.fx.GraphModule, list[Tensor]]:
        p = self.problem

        def trace(work: Callable) -> torch.fx.GraphModule:
            with untouched(p, state):
                return torch_graphs.traced(work, inputs)

        try:
            graph = trace(work)
        except Exception as error:
            watch = Watch(generator=p.generator, discriminator=p.discriminator)

            def watched(*given: Tensor) -> list[Tensor]:
                with watch:
                    return work(*given)

            try:
                trace(watched)
            except Exception as again:
                raise CannotRun(f"{key}: {watch.told(again, 'traced')}") from error
            raise CannotRun(f"{key} cannot be traced ({probe.first_line(error)})") from error
        for node in graph.graph.nodes:
            if node.kwargs.get("generator") is not None:
                raise CannotRun(
                    f"{key} draws from a torch.Generator of its own ({node.target}), which "
                    "compiled code cannot; use torch's default generator"
                )
        return graph, _inputs_only(graph, inputs)


def _state_of(problem: Problem) -> list[Tensor]:
    """What an update may write into: of the networks, and of a user's method and terms."""
    p = problem
    modules = [p.generator, p.discriminator]
    found: list[Tensor] = []
    for owner in (p.method, *(t.of for t in p.terms)):
        for value in getattr(owner, "__dict__", {}).values():
            if isinstance(value, nn.Module):
                modules.append(value)
            elif isinstance(value, Tensor):
                found.append(value)
    found += [t for m in modules for t in (*m.parameters(), *m.buffers())]
    return list({id(t): t for t in found}.values())


def _period(problem: Problem) -> int:
    """Steps after which all updates of a run have come."""
    p = problem
    updates = math.lcm(p.batches_per_epoch, p.d_steps, *(one.every for one in p.penalties))
    return min(updates // p.d_steps, _MOST)


def _inputs_only(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> list[Tensor]:
    """Make inputs of the tensors that a trace has found by itself, and of no others.

    Returns:
        what the graph is then to be called with.
    """
    nodes = list(graph.graph.nodes)
    places = [node for node in nodes if node.op == "placeholder"]
    held = dict(zip(map(id, inputs), zip(places, inputs, strict=True), strict=True))
    for node in nodes:
        if node.op != "get_attr":
            continue
        tensor = getattr(graph, node.target)
        if id(tensor) not in held:
            with graph.graph.inserting_before(places[0]):
                held[id(tensor)] = graph.graph.placeholder(node.target), tensor
        node.replace_all_uses_with(held[id(tensor)][0])
        graph.graph.erase_node(node)
    used = []
    for node, tensor in held.values():
        if node.users:
            used.append(tensor)
        else:
            graph.graph.erase_node(node)
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    held = {id(tensor): order[node] for node, tensor in held.values() if node in order}
    for target in {node.target for node in nodes if node.op == "get_attr"}:
        delattr(graph, target)  # or the compiler takes it for a weight
    graph.recompile()
    return sorted(used, key=lambda t: held[id(t)])


def _generators(device: torch.device) -> Tensor:
    """How far torch's generators are that an update may draw from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def _best(work: Callable[[], object], inside: Any = None) -> float:
    """Seconds that the work takes, best of a few."""
    found = []
    with inside or nullcontext():
        for _ in range(_TRIALS):
            since = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            found.append(time.perf_counter() - since)
            if sum(found) > _LONG:
                break
    return min(found)
