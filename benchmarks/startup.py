"""How long the command takes to answer, and what the first import costs.

    python benchmarks/startup.py

Each command runs in a process of its own, in turn; figures are medians. Results go to benchmarks/results/startup.json.
"""

from __future__ import annotations

import datetime
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from engines.timing import machine

ROUNDS = 15
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "sit-deploy --help": ["-m", "sit_deploy", "--help"],
    "sit-deploy build --help": ["-m", "sit_deploy", "build", "--help"],
    "sit-deploy models": ["-m", "sit_deploy", "models"],
    "import sit_deploy": ["-c", "import sit_deploy"],
}


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, arguments in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - started)
    medians = {name: round(statistics.median(values), 3) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:25} {median:.3f} s")
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    facts = {
        "date": date,
        "python": sys.version.split()[0],
        "machine": asdict(machine()),
        "median_seconds": medians,
    }
    path = Path(__file__).parent / "results" / "startup.json"
    path.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
