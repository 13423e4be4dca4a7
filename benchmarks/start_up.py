"""How long `import lmlab` and `lmlab --help` take, in starts of a bare interpreter, alternating in one run.

python benchmarks/start_up.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import lmlab": [sys.executable, "-c", "import lmlab"],
    "lmlab --help": [sys.executable, "-m", "lmlab", "--help"],
    "lmlab run --help": [sys.executable, "-m", "lmlab", "run", "--help"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            begun = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - begun)
    bare = statistics.median(seconds["python -c pass"])
    print("| command | median ms | times a bare interpreter |\n|---|---|---|")
    for name, values in seconds.items():
        print(f"| `{name}` | {statistics.median(values) * 1000:.0f} | {statistics.median(values) / bare:.1f} |")


if __name__ == "__main__":
    main()
