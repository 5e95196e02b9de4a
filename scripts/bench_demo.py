"""How long `make demo` takes, and the memory of all its processes together.

    python scripts/bench_demo.py

Run it where the environment is there already (`make setup`). Memory is the sum of the processes' proportional set sizes
(what several share counts once), looked at five times a second. Linux only.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
GIB = 2**30


def children(process: int) -> list[int]:
    """Return a process and all that descend from it."""
    found = [process]
    for pid in found:
        for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, tasks.read_text().split())
    return found


def memory(process: int) -> int:
    """Return the bytes of a process and its descendants, by their proportional set sizes."""
    total = 0
    for pid in children(process):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def main() -> None:
    """Run the demo and print what it took."""
    started, before = time.perf_counter(), os.times()
    demo = subprocess.Popen(["make", "demo"], cwd=ROOT, stdout=subprocess.DEVNULL)
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.2):
            try:
                peak = max(peak, memory(demo.pid))
            except OSError:  # one of them ended while it was looked at
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = demo.wait()
    done.set()
    watcher.join()
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    seconds = time.perf_counter() - started
    print(f"make demo: {seconds:.0f} s, {spent:.0f} s of processor, {peak / GIB:.2f} GiB at most; exit status {status}")


if __name__ == "__main__":
    main()
