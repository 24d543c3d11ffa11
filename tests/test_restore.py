"""Every field of a checkpoint of another type is refused in one line; what does not fit, too."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from fastgan import Callback, Trainer, models, optim
from fastgan.run import checkpoint, restore, schema, torch_rng
from fastgan.run.checkpoint import CheckpointError
from fastgan.run.log import RunLog

CPU = torch.device("cpu")
DATA = {
    "name": "digits", "kind": "image", "count": 40, "shape": [1, 4, 4], "dtype": "uint8",
    "condition": None, "checksum": "b21b9e24", "condition_checksum": None, "whole": ["12", None],
}  # fmt: skip


def networks(seed=0):
    torch.manual_seed(seed)
    g = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    return g, nn.Sequential(nn.Linear(2, 4), nn.LeakyReLU(), nn.Linear(4, 1))


class Run:
    """What a trainer has to save and to restore, small."""

    def __init__(self, make=optim.Adam, **options):
        self.g, self.d = networks()
        self.ema = copy.deepcopy(self.g)
        self.optimizers = {
            "optimizer_g": make(self.g.parameters(), lr=1e-3, **options),
            "optimizer_d": make(self.d.parameters(), lr=1e-3, **options),
        }
        self.scalers = [torch.amp.GradScaler("cpu", init_scale=8.0) for _ in range(2)]
        self.random = torch_rng.OwnStates(5, CPU)
        self.log = RunLog(("d_loss", "g_loss"))

    def train(self):
        loss = self.d(self.g(torch.randn(6, 3))).square().mean()
        loss.backward()
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.log.add(torch.tensor([[0.5, 0.25]]))
        assert self.log.first_bad() is None
        return self

    def state(self):
        return {
            "step": 7,
            "seconds": 1.5,
            "goal": {"epochs": None, "steps": 20, "seconds": 2.5},
            "config": {"seed": 3, "lr": [0.1, 0.2]},
            "models": {"generator": {"network": "Generator"}, "discriminator": None},
            "threads": 2,
            "engine": "eager",
            "data": dict(DATA),
            "generator": self.g.state_dict(),
            "discriminator": self.d.state_dict(),
            **{name: o.state_dict() for name, o in self.optimizers.items()},
            "ema": self.ema.state_dict(),
            "scalers": [s.state_dict() for s in self.scalers],
            "random": self.random.state_dict(),
            "log": self.log.state_dict(),
            "callbacks": {"guard": {"best": 0.5}},
            "loss": {"k": 0.1},
            "versions": {"fastgan": "0.1.0", "torch": "2", "python": "3"},
        }

    def restore(self, file):
        state = checkpoint.load(file)
        restore.restore(
            file,
            state,
            networks={"generator": self.g, "discriminator": self.d, "ema": self.ema},
            optimizers=self.optimizers,
            scalers=self.scalers,
        )
        with restore.reading(file, "random"):
            self.random.load_state_dict(state["random"])
        self.log.load_state_dict(state["log"], file)
        return state


OTHERS = {
    "none": None,
    "text": "x",
    "flag": True,
    "integer": 3,
    "negative": -1,
    "fraction": 2.5,
    "nan": float("nan"),
    "infinity": float("inf"),
    "list": ["x"],
    "dict": {"x": 1},
    "tensor": torch.zeros(3, dtype=torch.int64),
    "bytes": b"x",
    "huge": 10**30,
}
# Where a value may be anything plain: the readers of these judge it (Config, data, callbacks).
OPEN = ("config", "callbacks", "loss")
# A number may be another number, and an integer one where a fraction stood.
NUMBERS = {"integer", "fraction", "huge"}
MAY_BE = {
    ("goal", "epochs"): {"none", "integer"},
    ("goal", "steps"): {"none", "integer"},
    ("goal", "seconds"): {"none", *NUMBERS},
    ("step",): {"integer"},
    ("threads",): {"integer"},
    ("engine",): {"text"},
    ("seconds",): NUMBERS,
    ("loss",): {"none", "dict"},
    ("log", "last"): {"none"},
    ("log", "lines"): {"integer"},
    ("version",): {"integer"},
    **{("data", name): {"text"} for name in ("name", "kind", "dtype")},
    **{
        ("data", name): {"none", "text"} for name in ("condition", "checksum", "condition_checksum")
    },
    ("data", "count"): {"integer"},
    ("data", "whole"): {"none"},
    ("models", "generator"): {"none"},
    ("models", "generator", "network"): {"text"},
    ("models", "discriminator"): {"none"},
}


def places(value, path=()):
    """Every place in a state, as a path of keys."""
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*path, key))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from places(item, (*path, i))


def at(state, path):
    for key in path:
        state = state[key]
    return state


def changed(state, path, new):
    """A copy with another value at a place; `...` takes it away."""
    key, *rest = path
    fresh = list(state) if isinstance(state, (list, tuple)) else dict(state)
    if rest:
        fresh[key] = changed(state[key], rest, new)
    elif new is ...:
        del fresh[key]
    else:
        fresh[key] = new
    return tuple(fresh) if isinstance(state, tuple) else fresh


def sound_as(path, kind, old):
    """Whether a value of a kind may stand at a place as well."""
    if path == ("config", "seed"):
        return kind == "integer"
    if path[0] in OPEN and len(path) > 1:
        return kind != "bytes" and (kind != "tensor" or path[0] != "config")
    if path[0] in OPEN:
        return kind == "dict" or (path[0] == "loss" and kind == "none")
    if path in MAY_BE:
        return kind in MAY_BE[path]
    if path[:2] == ("data", "shape") and len(path) == 3:
        return kind == "integer"
    if path[:2] == ("data", "whole") and len(path) == 3:
        return kind in ("none", "text")
    if path[0] == "scalers" and len(path) == 3:
        whole = path[2] in ("growth_interval", "_growth_tracker")
        fits = {"integer"} if whole else NUMBERS
        return kind in (fits if path[2] != "backoff_factor" else set())
    if path[0] == "versions" and len(path) == 2:
        return kind == "text"
    if path[:2] == ("log", "columns"):
        return False
    if path[:2] == ("log", "last") and len(path) == 3:
        return kind in {*NUMBERS, "negative"}
    if path[0].startswith("optimizer_") and "param_groups" in path and len(path) > 3:
        if path[3] in ("lr", "eps", "weight_decay"):
            return kind in NUMBERS
        if path[3] == "betas":
            return False
        if isinstance(old, bool):
            return kind in ("flag", "none")
        if old is None:  # foreach, fused
            return kind in ("none", "flag", "negative", *NUMBERS)
        return False
    return False


def mutations():
    state = {"format": checkpoint.FORMAT, "version": checkpoint.VERSION, **Run().train().state()}
    for path in places(state):
        if not path:
            continue
        old = at(state, path)
        for kind, new in OTHERS.items():
            same = type(new) is type(old) in (int, float, str, bool) and new == old
            if not same and not sound_as(path, kind, old):
                yield path, kind, changed(state, path, new)
        if isinstance(old, torch.Tensor):
            for kind, new in (
                ("another type", old.to(torch.int32)),
                ("another precision", old.to(torch.float16)),
                ("another shape", torch.zeros(*old.shape, 5, dtype=old.dtype)),
                ("empty", old.new_empty(0)),
                ("sparse", old.float().to_sparse()),
            ):
                yield path, kind, changed(state, path, new)
        flags = path[0].startswith("optimizer_") and len(path) == 4 and isinstance(old, bool | None)
        if path[0] not in OPEN[1:] + ("config",) or len(path) == 1:
            optional = path[0] == "goal" and len(path) == 2
            # A parameter that never had a gradient has no state.
            optional |= len(path) == 3 and (path[1] == "state" or path[:2] == ("data", "shape"))
            if not (flags or optional):
                yield path, "missing", changed(state, path, ...)
        own = "param_groups" in path or path[:1] == ("models",) and len(path) == 2
        if isinstance(old, dict) and path[0] not in OPEN and not own:
            yield path, "one more", changed(state, (*path, "unheard of"), 1)


@pytest.mark.parametrize("part", range(4))
def test_a_field_of_another_type_is_refused_in_one_line_that_names_it(part, tmp_path):
    file = tmp_path / "checkpoint.pt"
    count = 0
    accepted, raw = [], []
    for path, kind, state in itertools.islice(mutations(), part, None, 4):
        count += 1
        torch.save(state, file)
        try:
            Run().restore(file)
        except CheckpointError as error:
            told = str(error)
            key = next((k for k in path if isinstance(k, str)), "")
            if "\n" in told or str(file) not in told or (key not in told and key != "format"):
                raw.append((path, kind, told))
        except Exception as error:
            raw.append((path, kind, repr(error)))
        else:
            accepted.append((path, kind))
    assert not raw and not accepted, f"{raw[:10]} {accepted[:10]}, {len(raw)} + {len(accepted)}"
    assert count > 200


def test_the_line_names_file_field_value_and_way_out(tmp_path):
    file = tmp_path / "checkpoint.pt"
    state = Run().train().state()
    checkpoint.save(file, state, keep=2)
    saved = torch.load(file, weights_only=True)
    torch.save(changed(saved, ("log", "lines"), "x"), file)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(file)
    assert str(caught.value) == (
        f"{file}: field 'log.lines' is 'x' (str); expected an integer of at least 0; "
        f"try another save of this run: {tmp_path / 'checkpoint-7.pt'}"
    )
    torch.save(changed(saved, ("seconds",), ...), file)
    with pytest.raises(CheckpointError, match="field 'seconds' is missing; expected a finite numb"):
        checkpoint.load(file)
    for version in (-1, 0, float("nan"), "3", True, None):
        torch.save(changed(saved, ("version",), version), file)
        with pytest.raises(CheckpointError, match="checkpoint.pt: field 'version' is "):
            checkpoint.load(file)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (optim.Adam, {}),
        (optim.AdamW, {"weight_decay": 0.1}),
        (torch.optim.Adam, {"amsgrad": True}),
        (torch.optim.AdamW, {"lr": torch.tensor(1e-3)}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.SGD, {}),
        (torch.optim.RMSprop, {"centered": True, "momentum": 0.1}),
        (torch.optim.Adafactor, {}),
        (torch.optim.Adagrad, {}),
        (torch.optim.NAdam, {}),
        (torch.optim.Rprop, {}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_sound_states_of_many_optimizers_are_taken(tmp_path, make, options):
    def new():
        return Run(lambda p, lr: make(p, **{"lr": lr, **copy.deepcopy(options)}))

    run, file = new().train(), tmp_path / "checkpoint.pt"
    checkpoint.save(file, run.state())
    again = new()
    again.restore(file)
    for name, optimizer in run.optimizers.items():
        there, here = optimizer.state_dict(), again.optimizers[name].state_dict()
        assert there["state"].keys() == here["state"].keys()
        for i, kept in there["state"].items():
            for key, value in kept.items():
                same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
                assert same(value, here["state"][i][key]), (i, key)
    # A new optimiser that has not made a step yet is as sound.
    checkpoint.save(file, new().state())
    new().restore(file)


def test_nothing_is_loaded_if_something_does_not_fit(tmp_path):
    file = tmp_path / "checkpoint.pt"
    checkpoint.save(file, Run().train().state())
    saved = torch.load(file, weights_only=True)
    wide = torch.zeros(9, 9)
    place = ("optimizer_d", "state", 2, "exp_avg")
    torch.save(changed(saved, place, wide), file)
    run = Run()
    before = copy.deepcopy(run.g.state_dict())
    with pytest.raises(CheckpointError, match=r"optimizer_d does not fit .*state\[2\].exp_avg"):
        run.restore(file)
    assert all(torch.equal(value, before[key]) for key, value in run.g.state_dict().items())


def test_an_average_that_is_on_one_side_only_is_told(tmp_path):
    file = tmp_path / "checkpoint.pt"
    checkpoint.save(file, {**Run().train().state(), "ema": None})
    with pytest.raises(CheckpointError, match="field 'ema' holds none, unlike this run"):
        Run().restore(file)
    checkpoint.save(file, Run().train().state())
    run = Run()
    run.ema = None
    with pytest.raises(CheckpointError, match="field 'ema' holds one, unlike this run"):
        run.restore(file)


def test_scalers_are_those_of_the_run(tmp_path):
    file = tmp_path / "checkpoint.pt"
    checkpoint.save(file, {**Run().train().state(), "scalers": []})
    with pytest.raises(CheckpointError, match="field 'scalers' holds 0, but this run has 2"):
        Run().restore(file)
    checkpoint.save(file, {**Run().train().state(), "scalers": [{}, {}]})
    with pytest.raises(CheckpointError, match=r"scalers\[0\].* is missing"):
        Run().restore(file)


def test_mismatch_names_the_first_differences():
    own = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}
    assert restore.mismatch(own, dict(own)) is None
    saved = {"a": torch.zeros(2), "b": torch.zeros(4), "d": torch.zeros(1)}
    told = restore.mismatch(own, saved)
    assert told == "missing in the checkpoint: c; only in the checkpoint: d; b is [3], saved [4]"
    saved = {"a": torch.zeros(2).double(), "b": 3, "c": torch.zeros(1)}
    told = restore.mismatch(own, saved)
    assert told == "a is float32, saved float64; b is a tensor, saved 3 (int)"


def test_what_a_checkpoint_cannot_hold_must_be_given(tmp_path):
    file = tmp_path / "checkpoint.pt"
    assert restore.require(file, "data", "given", "saved") == "given"
    assert restore.require(file, "data", None, "saved") == "saved"
    with pytest.raises(CheckpointError, match=r"checkpoint.pt was trained with a loss of your own"):
        restore.require(file, "loss", None, None)
    network = torch.nn.Linear(2, 1)
    weights = network.state_dict()
    assert restore.require_fit(file, "generator", network, weights) == weights
    with pytest.raises(CheckpointError, match=r"generator does not fit .*missing .*: bias"):
        restore.require_fit(file, "generator", network, {"weight": weights["weight"]})


@pytest.mark.parametrize("direction", ["into the bare", "into the wrapped"])
@pytest.mark.parametrize("wrap", ["DataParallel", "compile", "part"])
def test_a_wrapped_network_and_the_bare_one_are_the_same(tmp_path, wrap, direction):
    def wrapped(network):
        if wrap == "DataParallel":
            return nn.DataParallel(network)
        if wrap == "compile":
            return torch.compile(network)
        network[0] = torch.compile(network[0])
        return network

    one, other = networks(seed=1)[0], networks(seed=2)[0]
    if direction == "into the bare":
        one = wrapped(one)
    else:
        other = wrapped(other)
    weights = restore.require_fit(tmp_path, "generator", other, one.state_dict())
    other.load_state_dict(weights)
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_what_a_users_reader_raises_is_one_line(tmp_path):
    with (
        pytest.raises(CheckpointError) as caught,
        restore.reading(tmp_path / "c.pt", "callbacks.mine"),
    ):
        raise KeyError("best\nof all")
    assert str(caught.value).startswith(f"{tmp_path / 'c.pt'}: field 'callbacks.mine' cannot be re")
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="^as it is$"), restore.reading(tmp_path, "x"):
        raise CheckpointError("as it is")


def test_a_list_within_itself_is_refused():
    endless = []
    endless.append(endless)
    with pytest.raises(schema.Wrong, match="expected plain values"):
        schema.plain(endless, "callbacks")


def test_numpys_numbers_in_an_optimizer_are_saved_as_numbers(tmp_path):
    run, file = Run().train(), tmp_path / "checkpoint.pt"
    run.optimizers["optimizer_g"].param_groups[0]["lr"] = np.float64(0.25)
    checkpoint.save(file, run.state())
    again = Run()
    again.restore(file)
    lr = again.optimizers["optimizer_g"].param_groups[0]["lr"]
    assert lr == 0.25 and type(lr) is float


class Forgetful(Callback):
    """Its state holds what no checkpoint can."""

    def state_dict(self):
        return {"best": {"hook": print}}


def test_a_run_that_could_not_be_saved_does_not_begin(tmp_path):
    trainer = Trainer(
        None, None, "digits", engine="eager", device="cpu", latent_dim=5, batch_size=8,
        image_size=6, out=tmp_path / "run", callbacks=Forgetful(),
    )  # fmt: skip
    with pytest.raises(
        CheckpointError, match=r"\['best'\]\['hook'\] is a builtin_function_or_meth"
    ):
        trainer.fit(steps=2)
    assert trainer.step == 0 and not (tmp_path / "run").exists()


def test_a_described_network_is_made_as_it_is_described_or_not_at_all():
    described = models.describe(models.Discriminator((1, 4, 4), 8, False))
    assert models.describe(models.rebuild(described)) == described
    for damage in ({"sigmoid": 1}, {"sigmoid": "x"}, {"sigmoid": float("nan")}):
        with pytest.raises(ValueError, match="Discriminator cannot be made of"):
            models.rebuild({**described, **damage})
    for name in ("sigmoid", "hidden", "img_shape"):
        with pytest.raises(ValueError, match="Discriminator cannot be made of"):
            models.rebuild({key: value for key, value in described.items() if key != name})
