"""How the source is laid out: sizes of files, imports without circles, names that were given up."""

import ast
import fnmatch
import functools
import io
import re
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("fastgan", "csrc", "tests", "benchmarks", "tools", "examples")
CODE = (".py", ".h", ".cpp", ".cu", ".cuh")
MOST_LINES = 450
LONGER: dict[str, str] = {}
"""Files that may have more lines, each with the reason why it is not cut."""


def sources(*folders, suffixes=CODE):
    found = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.suffix in suffixes]
    return sorted(p for p in found if "__pycache__" not in p.parts)


def relative(path):
    return path.relative_to(ROOT).as_posix()


# Sizes


def test_no_file_is_longer_than_it_may_be():
    lines = {relative(p): len(p.read_text().splitlines()) for p in sources(*FOLDERS)}
    too_long = {name: n for name, n in lines.items() if n > MOST_LINES and name not in LONGER}
    assert not too_long, f"above {MOST_LINES} lines, and not in LONGER with a reason"
    needless = [name for name in LONGER if lines.get(name, 0) <= MOST_LINES]
    assert not needless, "in LONGER, but short enough or gone"
    assert len(lines) > 100


# Imports


def modules(package):
    """Every module of a package by its dotted name, and whether it is a package itself."""
    out = {}
    for path in sorted(package.rglob("*.py")):
        parts = list(path.relative_to(package.parent).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        out[".".join(parts[:-1] if is_package else parts)] = (path, is_package)
    return out


def at_import(tree):
    """The import statements that run when the module is imported."""
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            # Bodies of classes, of try, with, if and for are run.
            waiting += [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)]
            waiting += [n for h in getattr(node, "handlers", []) for n in h.body]


def imported(name, known):
    """The modules of the package that a module imports as it is imported."""
    path, is_package = known[name]
    out = set()
    for node in at_import(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        else:
            here = name.split(".")
            if node.level:
                up = here[: len(here) - node.level + is_package]
                base = ".".join([*up, *filter(None, [node.module])])
            else:
                base = node.module
            targets = [
                whole if (whole := f"{base}.{alias.name}") in known else base
                for alias in node.names
            ]
        out |= {target for target in targets if target in known}
    return out - {name}


def circles(graph):
    """Groups of modules that import each other, directly or through others."""
    reach = {}

    def reached(start):
        seen, waiting = set(), [start]
        while waiting:
            for following in graph[waiting.pop()]:
                if following not in seen:
                    seen.add(following)
                    waiting.append(following)
        return seen

    for name in graph:
        reach[name] = reached(name)
    groups = {
        frozenset(other for other in reach[name] if name in reach[other])
        for name in graph
        if name in reach[name]
    }
    return sorted(sorted(group) for group in groups)


def test_modules_do_not_import_each_other_in_circles():
    known = modules(ROOT / "fastgan")
    graph = {name: imported(name, known) for name in known}
    assert len(graph) > 30 and graph["fastgan.trainer"]
    assert circles(graph) == []


def test_a_circle_would_be_found(tmp_path):
    package = tmp_path / "p"
    (package / "q").mkdir(parents=True)
    for name, text in {
        "__init__": "from p.a import x",
        "a": "import os\nfrom . import b\nx = 1",
        "b": "def later():\n    from p import a",
        "c": "try:\n    from .q import d\nexcept ImportError:\n    d = None",
        "q/__init__": "",
        "q/d": "if TYPE_CHECKING:\n    from p import a\nclass D:\n    from .. import c",
    }.items():
        (package / f"{name}.py").write_text(text + "\n")
    known = modules(package)
    graph = {name: imported(name, known) for name in known}
    assert graph["p"] == {"p.a"} and graph["p.a"] == {"p.b"} and graph["p.b"] == set()
    assert circles(graph) == [["p.c", "p.q.d"]]


# Names


GONE_NAMES = {
    # A pattern of code, without its comments and texts: (what it is called now, where it may not
    # stand, in files of which kinds if not in all). A name with another meaning elsewhere is looked
    # for in the rooms in which it had this one.
    r"\b(Game|GAMES|game)\b": ("Loss, LOSSES, loss", FOLDERS),
    r"\btakes_sigmoid\b": ("Loss.scores", FOLDERS),
    r"\bRAW_SCORES\b": ("Loss.scores", FOLDERS),
    r"\bWhen\b": ("Counter", FOLDERS),
    r"\bKind\b": ("StepShape", ("fastgan/engines", "csrc/cpu", "csrc/step")),
    r"\bkind_of\b": ("shape_of", ("fastgan/engines", "csrc", "tests/native")),
    r"\buse\s*:\s*int\b|\bint\s+use\b": ("Pass", ("fastgan/engines", "csrc")),
    r"\b(_Numbers|PlanReader|plan_reader)\b": ("PlanEncoder, PlanDecoder", FOLDERS),
    r"\b(looks|fused_bind|_kinds)\b": ("Snapshot", ("fastgan", "csrc")),
    r"\bjudge\b": ("head", FOLDERS),
    r"\b(Products|Math)\b": ("Precision", ("csrc", "tests/native")),
    r"\bbreakdown\b": ("diagnosis", FOLDERS),
    r"\brecipe\b": ("the registry of fastgan.models", FOLDERS),
    r"\btorchrandom\b": ("run.torch_rng", FOLDERS),
    r"\brunlog\b": ("run.log", FOLDERS),
    r"\bfastgan\.classic\b": ("fastgan.train_gan", FOLDERS),
    r"\bfastgan\.interrupts\b": ("run.signals", FOLDERS),
    r"\bImages\b": ("Data", FOLDERS, ".py"),
    r"(images|data|source)\.pixels\b": ("Data.samples", FOLDERS),
    r"\bopen_images\b": ("data.open", FOLDERS),
}
GONE_WORDS = (
    *("GAMES", "torchrandom", "runlog", "plan_reader", "watch.cpp", "_Numbers"),
    *("benchmarks/device.py", "benchmarks/exercise.py", "fastgan/classic.py"),
)
GONE_FILES = (
    *("fastgan/_start.py", "fastgan/breakdown.py", "fastgan/checkpoint.py", "fastgan/classic.py"),
    *("fastgan/interrupts.py", "fastgan/ops.py", "fastgan/plan.py", "fastgan/reference.py"),
    *("fastgan/report.py", "fastgan/runlog.py", "fastgan/torchrandom.py", "csrc/watch.cpp"),
    *("csrc/plan_reader.h", "benchmarks/device.py", "benchmarks/exercise.py"),
)
HERE = relative(Path(__file__).resolve())


@functools.cache
def code_of(path, text):
    """The text with comments and literals blanked, line by line as it was."""
    if path.suffix != ".py":
        pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"'
        return re.sub(pattern, lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.S)
    lines = [list(line) for line in text.splitlines(keepends=True)]
    blank = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in blank:
            for row in range(token.start[0], token.end[0] + 1):
                line = lines[row - 1]
                begin = token.start[1] if row == token.start[0] else 0
                end = token.end[1] if row == token.end[0] else len(line)
                line[begin:end] = [c if c == "\n" else " " for c in line[begin:end]]
    return "".join("".join(line) for line in lines)


@pytest.mark.parametrize("pattern", GONE_NAMES, ids=lambda pattern: GONE_NAMES[pattern][0])
def test_a_name_that_was_given_up_is_not_used(pattern):
    now, rooms, *suffixes = GONE_NAMES[pattern]
    found = []
    for path in sources(*rooms, suffixes=suffixes or CODE):
        if relative(path) != HERE:
            code = code_of(path, path.read_text())
            for number, line in enumerate(code.splitlines(), 1):
                if re.search(pattern, line):
                    found.append(f"{relative(path)}:{number}: {line.strip()}")
    assert not found, f"is called {now} now"


def test_comments_and_texts_are_not_code():
    python = 'x = "Game"  # Game\n"""A\nGame"""\nf = Game(f"Game {x}")\n'
    assert code_of(Path("a.py"), python).count("Game") <= 2  # an f-string is a name before 3.12
    assert code_of(Path("a.py"), "y = 1  # Game\n").splitlines()[0].strip() == "y = 1"
    native = 'int a; // Game\n/* Game\n */ Game b = f("Game");\n'
    assert re.findall(r"\n.*Game.*", code_of(Path("a.cpp"), native)) == [
        "\n    Game b = f(      );"
    ]


def test_texts_and_pages_do_not_speak_of_what_is_gone():
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", ".ci/run", "setup.py")]
    found = [
        f"{relative(path)}: {word}"
        for path in [*pages, *sources(*FOLDERS)]
        for word in GONE_WORDS
        if relative(path) != HERE and word in path.read_text()
    ]
    assert not found


def test_files_that_were_renamed_or_dropped_are_gone():
    assert [name for name in GONE_FILES if (ROOT / name).exists()] == []


# What is installed


def test_every_folder_of_the_package_is_installed():
    """setuptools is told the packages by name: a folder that is not among them is left out."""
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    files = [p for p in (ROOT / "fastgan").rglob("*.py") if "__pycache__" not in p.parts]
    folders = {p.parent.relative_to(ROOT).as_posix().replace("/", ".") for p in files}
    assert sorted(told) == sorted(folders)


# Pages


PAGES = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "examples/README.md")
PAGES += tuple(relative(p) for p in sources("docs", suffixes=(".md",)))


def fenced(text):
    """The lines of a page's commands: in fences, or indented by four."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.S)
    return "\n".join([*blocks, *re.findall(r"(?m)^    (?:python|pip|\.ci|fastgan) .*$", text)])


def headings(page):
    """The places in a page that a link can lead to."""
    lines = re.findall(r"(?m)^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S))
    return {re.sub(r"[^\w -]", "", line.lower()).strip().replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_commands_of_a_page_lead_to_files(page):
    path = ROOT / page
    text = path.read_text()
    found = re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", re.sub(r"```.*?```", "", text, flags=re.S))
    links = [path.parent / link for link, _ in found if link and "://" not in link]
    places = [(path.parent / link if link else path, to) for link, to in found if to]
    run = re.findall(
        r"(?<![\w$/])(?:benchmarks|tools|tests|examples)/[\w/]+\.(?:py|cpp)", fenced(text)
    )
    missing = [str(p) for p in [*links, *(ROOT / name for name in run)] if not p.exists()]
    missing += [f"{page}#{to}" for page, to in places if to not in headings(page)]
    assert not missing
    wanted = {"README.md": links, "CONTRIBUTING.md": run, "benchmarks/README.md": run}
    assert page not in wanted or len(wanted[page]) > 3, "links and commands were looked for"


def test_files_and_folders_that_contributing_names_exist():
    """A path is one of the checkout, or of the package; a bare name is that of some file."""
    text = re.sub(r"```.*?```", "", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.S)
    files = {p.name for p in sources(*FOLDERS)} | {p.name for p in ROOT.iterdir()}
    named = set(re.findall(r"`([\w./*-]+(?:/|\.(?:py|cpp|cuh?|h|md|\*)))`", text))
    missing = []
    for name in named - {"torch.ops.fastgan.*"}:
        if "/" in name:
            found = [*ROOT.glob(name), *(ROOT / "fastgan").rglob(name)]
        else:
            found = fnmatch.filter(files, name)
        missing += [] if found else [name]
    assert len(named) > 100 and missing == []


def test_ci_names_tests_and_blocks_that_exist():
    script = (ROOT / ".ci" / "run").read_text()
    named = [n for line in re.findall(r"(?m)^  run_tests (.+)$", script) for n in line.split()]
    assert named and not [n for n in named if not list((ROOT / "tests").glob(f"test_{n}*.py"))]
    blocks = re.findall(r"run_block (\S+) (\w+)", script)
    blocks = [b for b in blocks if not b[0].startswith('"')]
    assert len(blocks) == 4
    for page, name in blocks:
        assert (ROOT / page).read_text().count(f"<!-- ci: {name} -->\n```sh\n") == 1, name
    if bash := shutil.which("bash"):
        assert subprocess.run([bash, "-n", str(ROOT / ".ci" / "run")]).returncode == 0
