"""What `import transformers_owl` costs over importing the transformers modules that it needs.

python benchmarks/import_time.py [--pairs 7]

Both sides start fresh processes, alternating; the medians of the pairs are printed, in seconds.
"""

import argparse
import statistics
import subprocess
import sys


MODULES = """
import sys, transformers_owl
libraries = ("transformers", "torch", "PIL", "tokenizers")
print(" ".join(name for name in sys.modules if name.partition(".")[0] in libraries))
"""
TIMED = "import sys, time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    pairs = parser.parse_args().pairs
    needed = f"[__import__(name) for name in {run(MODULES).split()!r}]"
    library, ours = [], []
    for _ in range(pairs):
        library.append(float(run(TIMED.format(needed))))
        ours.append(float(run(TIMED.format("import transformers_owl"))))
    extra = statistics.median(b - a for a, b in zip(library, ours, strict=True))
    print(f"transformers modules {statistics.median(library):.2f}  transformers_owl {statistics.median(ours):.2f}")
    print(f"extra {extra:.3f}")


if __name__ == "__main__":
    main()
