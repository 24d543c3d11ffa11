"""docs/: the blocks of its guides run as they stand, and every page and link has its place."""

import re
from pathlib import Path

import check_links
import first_run
import pytest

from fastgan.cli import _parser

DOCS = Path(__file__).parents[1] / "docs"
if not DOCS.exists():
    pytest.skip("docs/ is part of a checkout only", allow_module_level=True)

PAGES = sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md"))
ROOT = DOCS.parent


def blocks_of(page):
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.S)


GUIDES = {
    # What must be true of the names that the blocks of a page leave behind.
    "first_run.md": lambda names: (
        names["resumed"].step == 70
        and names["tuned"].step == 0
        and names["images"].shape == (16, 1, 28, 28)
        and "<h1>first</h1>" in names["page"].html
    ),
    "scripts.md": lambda names: (
        type(names["G"][0]).__name__ == "Linear" and names["d_loss"].isfinite()
    ),
    "networks.md": lambda names: names["resumed"].step == 40,
    "data.md": lambda names: names["trainer"].step == 50 and len(names["data"]) == 200,
    "fast.md": lambda names: names["trainer"].step == 200 and names["summary"]["ms_per_step"] > 0,
    "processes.md": lambda names: (
        names["trainer"].world.size == 1 and names["trainer"].step == names["divided"].step == 20
    ),
    "inside.md": lambda names: names["rows"].shape[0] == 3 and names["engine"].step == 3,
}


@pytest.mark.parametrize("page", GUIDES)
def test_every_block_of_a_guide_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names = {"__name__": "__main__"}
    blocks = blocks_of(page)
    assert blocks
    for block in blocks:
        exec(block, names)
    assert GUIDES[page](names)


def test_every_page_with_code_has_a_test():
    tests = "\n".join(p.read_text() for p in Path(__file__).parent.glob("test_*.py"))
    with_code = [page for page in PAGES if blocks_of(page)]
    assert len(with_code) > 10
    assert [page for page in with_code if f'"{page}"' not in tests] == []


def test_every_page_has_its_place_in_the_site():
    index = (DOCS / "index.md").read_text()
    named = {line for part in re.findall(r"```{toctree}\n(.*?)```", index, flags=re.S)
             for line in part.splitlines() if re.fullmatch(r"[\w/]+", line)}  # fmt: skip
    assert {f"{name}.md" for name in named} == {*PAGES} - {"index.md"}


@pytest.mark.parametrize("name", ["literalinclude", "eval-rst"])
def test_what_pages_show_of_the_code_is_there(name):
    found = 0
    for page in PAGES:
        text = (DOCS / page).read_text()
        if name == "literalinclude":
            parts = re.findall(r"{literalinclude} (\S+)\n:(?:pyobject|start-at): (.*)\n", text)
            for file, start in parts:
                code = (DOCS / page).parent.joinpath(file).read_text()
                assert re.search(rf"(?m)^(def |class )?{re.escape(start)}\b", code), (page, start)
                found += 1
        else:
            for module in re.findall(r"automodule:: (\S+)", text):
                path = ROOT.joinpath(*module.split("."))
                assert path.is_dir() or path.with_suffix(".py").exists(), module
                found += 1
    assert found > 10


def test_the_first_run_is_commands_without_a_flag_of_which_ci_runs_the_last_three():
    install, *others = first_run.commands((DOCS / "first_run.md").read_text())
    assert install == "pip install ." and len(others) == 4
    known = next(a for a in _parser()._actions if a.choices).choices
    assert all(
        c.split()[0] == "fastgan" and c.split()[1:] in [[name] for name in known] for c in others
    )
    assert "$(block docs/first_run.md path | sed 1,2d)" in (ROOT / ".ci/run").read_text()


# The tool that looks at the site once it is built.


def site(tmp_path, **pages):
    for name, text in pages.items():
        (tmp_path / f"{name}.html").write_text(text)
    return check_links.broken(tmp_path)


def test_links_that_lead_somewhere(tmp_path):
    first = '<a href="b.html#here">b</a> <a href="#top">up</a> <a href="https://a.b/c">c</a>'
    found = site(tmp_path, a=first, b='<h1 id="here">b</h1><a href="./a.html">a</a>')
    assert found == (2, [], 1)


@pytest.mark.parametrize(
    ("link", "why"),
    [
        ('<a href="c.html">c</a>', "c.html: there is no such file"),
        ('<a href="b.html#gone">b</a>', "b.html#gone: there is no such place"),
        ('<a href="../a.html">a</a>', "../a.html: there is no such file"),
        ('<script src="https://a.b/c.js"></script>', "is needed, and lies outside"),
        ('<link rel="stylesheet" href="_static/no.css">', "no.css: there is no such file"),
    ],
)
def test_links_that_do_not(link, why, tmp_path):
    _, lines, _ = site(tmp_path, a=link, b='<h1 id="here">b</h1>')
    assert len(lines) == 1 and lines[0].startswith("a.html: ") and why in lines[0]
