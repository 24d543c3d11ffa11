"""One tool of compute-sanitizer over exercise.py: which of its reports are about our kernels?

    python tools/sanitize.py racecheck chain
    python tools/sanitize.py initcheck operators

initcheck looks at every kernel: with a filter it would not see what torch and cuBLAS write, and
report all of that as never written. It is judged by the reports whose reading kernel is ours. The
other tools look at our kernels only, and any report counts. The exit status is 0 without such
reports, 9 with some, and the tool's own if it could not run.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
OURS = "fastgan"
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
FOUND = 9


def command(tool: str, what: str) -> list[str]:
    """The command line of a tool over a part of exercise.py."""
    words = ["compute-sanitizer", "--tool", tool, "--report-api-errors", "no"]
    if tool == "initcheck":
        # Reports about others' kernels must not use up the number that is printed.
        words += ["--print-limit", "100000"]
    else:
        words += ["--error-exitcode", str(FOUND), "--print-limit", "20"]
        words += ["--kernel-name", f"kernel_substring={OURS}"]
    return [*words, sys.executable, str(HERE / "exercise.py"), what]


def count(text: str) -> tuple[int, int]:
    """(reports about our kernels, reports about others') in what initcheck said.

    A report is a line that begins it, then indented ones; the first of these that starts with "at"
    names the kernel in which it happened.
    """
    ours = others = 0
    for report in _reports(text):
        frame = next((line for line in report if re.match(r"at\b", line)), "")
        if OURS in frame:
            ours += 1
        else:
            others += 1
    return ours, others


def _reports(text: str) -> list[list[str]]:
    out: list[list[str]] = []
    for line in text.splitlines():
        said = re.match(r"========= ( *)(.*)", line)
        if said is None:
            continue
        indent, rest = len(said[1]), said[2].strip()
        if indent == 0 and re.match(r"Uninitialized|Unused memory", rest):
            out.append([])
        elif out and indent:
            out[-1].append(rest)
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("what", help="of exercise.py: operators, chain, persistent, ...")
    options = parser.parse_args(argv)
    words = command(options.tool, options.what)
    if options.tool != "initcheck":
        return subprocess.run(words).returncode
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    text = done.stdout.decode(errors="replace")
    shown = [report for report in _reports(text) if OURS in " ".join(report)]
    for report in shown[:20]:
        print("\n  ".join(["report:", *report]))
    print("\n".join(text.splitlines()[-15:]))
    ours, others = count(text)
    print(f"{ours} reports of initcheck are about our kernels, {others} about others'")
    if ours:
        return FOUND
    # Its own status is that of the program it ran: a report alone does not change it.
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
