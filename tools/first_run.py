"""How long does a newcomer's way take? python tools/first_run.py

The commands of docs/first_run.md, one after the other, in a copy of this checkout and an
environment of its own, with nothing in the user's cache but pip's: install, train, report,
evaluate, export.
"""

import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "first_run.md"


def commands(page):
    """Those after the mark <!-- ci: path -->, a line each."""
    return re.search(r"<!-- ci: path -->\n```sh\n(.*?)```", page, flags=re.S)[1].splitlines()


def main():
    """Run them and print a row of Markdown for each."""
    with tempfile.TemporaryDirectory() as place:
        copy, own = Path(place, "fastgan"), Path(place, "venv")
        subprocess.run(["git", "clone", "-q", str(ROOT), str(copy)], check=True)
        venv.create(own, with_pip=True)
        pip_cache = os.environ.get("PIP_CACHE_DIR", Path.home() / ".cache" / "pip")
        environment = {
            **{n: v for n, v in os.environ.items() if n not in ("PYTHONPATH", "VIRTUAL_ENV")},
            "PATH": f"{own / 'bin'}:{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(Path(place, "cache")),
            "PIP_CACHE_DIR": str(pip_cache),
        }
        rows, whole = [], time.perf_counter()
        for command in commands(PAGE.read_text()):
            print(f"+ {command}", flush=True)
            began = time.perf_counter()
            subprocess.run(command, shell=True, cwd=copy, env=environment, check=True)
            rows.append((command, time.perf_counter() - began))
        rows.append(("all", time.perf_counter() - whole))
        size = sum(f.stat().st_size for f in (copy / "runs").rglob("*") if f.is_file())
    print(f"\n{os.cpu_count()} processors, {platform.machine()}, Python {sys.version.split()[0]}; ")
    print(f"the run is {size / 1e6:.1f} MB\n\n| command | seconds |\n|---|---|")
    for command, seconds in rows:
        print(f"| {command if command == 'all' else f'`{command}`'} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
