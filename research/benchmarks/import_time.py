"""Time of `import transformers_owl` beyond the transformers modules that it needs, and of a help text.

python research/benchmarks/import_time.py [--runs 7]

Each run is a new process that first imports those modules and then the package. The script prints medians in seconds.
For the command line, it takes the fastest run minus the fastest start of Python.
"""

import argparse
import statistics
import subprocess
import sys
import time


COMMAND = "from transformers_owl_cli.commands import app; app()"
MODULES = """
import sys, transformers_owl
print(" ".join(name for name in sys.modules if name.partition(".")[0] == "transformers"))
"""
TIMED = """
import time
start = time.perf_counter()
for name in {}:
    __import__(name)
between = time.perf_counter()
import transformers_owl
print(between - start, time.perf_counter() - between)
"""


def run(program: str) -> list[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()


def fastest(runs: int, *words: str) -> float:
    """Seconds of a process of Python."""

    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *words], capture_output=True, check=False)
        return time.perf_counter() - start

    return min(seconds() for _ in range(runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    needed = run(MODULES)
    library, extra = zip(*(map(float, run(TIMED.format(needed))) for _ in range(runs)), strict=True)
    print(f"transformers modules {statistics.median(library):.2f}")
    print(f"extra {statistics.median(extra):.3f}")
    python = fastest(runs, "-c", "pass")
    for words in ("--help", "--version", "captoin"):
        print(f"transformers-owl {words} {fastest(runs, '-c', COMMAND, words) - python:.2f}")


if __name__ == "__main__":
    main()
