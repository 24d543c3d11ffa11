"""What is written for TensorBoard, read back from its files."""

import io
import struct
import sys

import numpy as np
import pytest
from PIL import Image
from small_runs import small

import fastgan
from fastgan import Callback, Trainer
from fastgan.cli import main
from fastgan.config import ConfigError

proto = pytest.importorskip("tensorboardX.proto.event_pb2")


def events(folder):
    """The events of a folder's files, in the order of their names, as TensorBoard reads them."""
    found = []
    for file in sorted(folder.glob("events.out.tfevents.*")):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack("<Q", content[at : at + 8])
            found.append(proto.Event.FromString(content[at + 12 : at + 12 + length]))
            at += 16 + length
    return found


def values(folder, kind):
    """(tag, step, what it holds) of all values of a kind."""
    return [
        (value.tag, event.step, getattr(value, kind))
        for event in events(folder)
        for value in event.summary.value
        if value.HasField(kind)
    ]


class Extra(Callback):
    def line(self, trainer, line):
        line["more"] = {"a": 1.5}
        line["word"] = "no number"


def test_numbers_samples_and_settings_are_written(tmp_path):
    t = small(tmp_path / "a", data="digits", callbacks=[Extra(), fastgan.TensorBoard()])
    t.fit(steps=25)
    place = tmp_path / "a" / "tensorboard"
    scalars = values(place, "simple_value")
    for line in t.history:
        told = {tag: value for tag, step, value in scalars if step == line["step"]}
        for name in ("d_loss", "g_loss", "d_loss_mean", "d_fake"):
            assert told[name] == pytest.approx(line[name], rel=1e-6)
        assert told["more/a"] == 1.5 and told["ms_per_step"] > 0 and told["epoch"] == 1
        assert not {"word", "step"} & told.keys()
    (shown,) = values(place, "image")
    assert shown[:2] == ("samples", 25)
    pixels = np.asarray(Image.open(io.BytesIO(shown[2].encoded_image_string)).convert("L"))
    with Image.open(tmp_path / "a" / "samples.png") as drawn:
        assert np.array_equal(pixels, np.asarray(drawn))
    ((tag, step, settings),) = values(place, "tensor")
    assert "settings" in tag and step == 0
    assert "    batch_size: 8\n" in settings.string_val[0].decode()


def test_a_resumed_run_takes_back_what_was_beyond(tmp_path):
    small(tmp_path / "a", data="digits", callbacks=fastgan.TensorBoard()).fit(steps=10)
    Trainer.resume(tmp_path / "a", callbacks=fastgan.TensorBoard()).fit(steps=20)
    found = events(tmp_path / "a" / "tensorboard")
    begun = [e.step for e in found if e.HasField("session_log")]
    assert begun == [11]
    steps = {s for tag, s, _ in values(tmp_path / "a" / "tensorboard", "simple_value")}
    assert steps == {10, 20}
    # Within a second of each other, files do not replace each other.
    t = small(tmp_path / "b", data="digits", callbacks=fastgan.TensorBoard(), log_every=1)
    for step in range(1, 6):
        t.fit(steps=step)
    steps = [s for tag, s, _ in values(tmp_path / "b/tensorboard", "simple_value")]
    assert sorted(set(steps)) == [1, 2, 3, 4, 5]


def test_alarms_are_told(tmp_path):
    class Held(Callback):
        def line(self, trainer, line):
            line["alarms"] = ["diverging"]

    small(tmp_path / "a", callbacks=[Held(), fastgan.TensorBoard()]).fit(steps=10)
    told = [v.string_val[0] for tag, _, v in values(tmp_path / "a/tensorboard", "tensor")]
    assert b"diverging" in told


def test_where_it_writes(tmp_path):
    small(callbacks=fastgan.TensorBoard(tmp_path / "b")).fit(steps=10)
    assert values(tmp_path / "b", "simple_value")
    with pytest.raises(ConfigError, match="nowhere to write"):
        small(callbacks=fastgan.TensorBoard()).fit(steps=1)
    watched = small(tmp_path / "c", callbacks=fastgan.TensorBoard())
    watched.fit(steps=10)
    own = tmp_path / "c" / "tensorboard" / "notes.txt"
    own.write_text("mine")
    small(tmp_path / "c", if_exists="overwrite")
    assert [p.name for p in own.parent.iterdir()] == ["notes.txt"]


def test_members_of_a_sweep_write_their_own(here):
    words = "--data ring8 --steps 20 --batch-size 16 --log-every 10 --seeds 2 --quiet --out sweep"
    assert main(["sweep", "--tensorboard", *words.split()]) == 0
    for member in ("0", "1"):
        found = values(here / "sweep" / member / "tensorboard", "simple_value")
        assert {step for _, step, _ in found} == {10, 20}


def test_without_tensorboardx_a_sentence_says_how(here, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match=r"pip install 'fastgan\[tensorboard\]'"):
        fastgan.TensorBoard()
    for command in ("train", "sweep", "demo"):
        assert main([command, "--tensorboard", "--steps", "1"]) == 2
        assert "tensorboardX, which is not here" in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_the_command_writes_beside_the_run(here):
    arguments = ("--steps", "2", "--device", "cpu", "--quiet", "--width", "4", "--log-every", "1")
    assert main(["train", "--tensorboard", *arguments]) == 0
    assert {step for _, step, _ in values(here / "runs/digits/tensorboard", "simple_value")} == {
        1,
        2,
    }
    assert Trainer.resume("runs/digits").step == 2
