"""Measure the claims of both papers on the embedded streams, and write docs/claims.md with its plots.

    python scripts/reproduce_claims.py                       # all claims: says how long first, goes on where it stopped
    python scripts/reproduce_claims.py --only price budget    # some; the unlimited line only when asked for
    python scripts/reproduce_claims.py --write                # docs/claims.md from what there is, without a run

Runs go to outputs/claims, one folder for each stream and budget; finished ones are not made again. The methods that a
claim rests on come first, and of these seeds 0-2, so that stopping early costs seeds, not claims. What is measured
stands in claims_plan.py; what it shows is worked out in claims_report.py. Tuning is apart: tune_methods.py.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from claims_plan import APART, CLAIMS, WEAK_PASSES, Job, planned

import budgetcl
from budgetcl.records.record import find

ROOT = Path(__file__).parent.parent
FAILED = "failed.txt"  # what the last call could not run, and why


# --- runs --------------------------------------------------------------------------------------------------------


def records(output: Path) -> dict[tuple[str, str, str, int], dict]:
    """Return the summaries of all finished runs by (folder, method, control, seed)."""
    found = {}
    for results in find([output]) if output.exists() else ():
        info = results.info
        if results.finished and info["versions"]["budgetcl"] == budgetcl.__version__:
            control = info.get("control") or {}
            method = str(control.get("of") or info["method"]).split("(")[0]
            key = (results.folder.parent.name, method, control.get("kind") or "", int(info["seed"]))
            found[key] = {**info["summary"], "group": info["group"]}
    return found


def make(job: Job, output: Path, until: float) -> str:
    """Make one run, in a process of its own thread; return why it failed, or nothing."""
    if time.time() > until:
        return "left for the next time"
    import torch

    from budgetcl.configuration import compose
    from budgetcl.run import execute, reason

    torch.set_num_threads(1)
    overrides = job.overrides(output)
    try:
        execute(compose(overrides), overrides, several=True, alone=False)
    except Exception as error:
        return f"failed: {reason(error)}"
    return ""


def pretrain_weakly(output: Path) -> None:
    """Make the weak backbone: as the shipped one, with three tenths of its pictures."""
    file = output / "weak.safetensors"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        script = Path(__file__).with_name("pretrain_glyphs.py")
        subprocess.run([sys.executable, script, "--passes", str(WEAK_PASSES), "--out", file], check=True)


def main() -> int:
    """Say how long it takes, make what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=(*CLAIMS, *APART), default=CLAIMS, metavar="CLAIM",
                        help=f"of {', '.join((*CLAIMS, *APART))}")  # fmt: skip
    parser.add_argument("--write", action="store_true", help="make no run; write docs/claims.md from what there is")
    parser.add_argument("--dry", action="store_true", help="say what is missing and how long it takes, no more")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each (default 2)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so many")
    arguments = parser.parse_args()
    os.chdir(ROOT)  # records name no absolute path
    output = Path("outputs/claims")
    failed = []
    if not arguments.write:
        done = records(output)
        missing = [job for job in planned(arguments.only) if job.key not in done]
        minutes = sum(job.seconds for job in missing) * 1.2 / arguments.jobs / 60  # what methods add to naive
        print(
            f"{len(missing)} runs are missing: about {minutes:.0f} minutes on {arguments.jobs} free cores", flush=True
        )
        if arguments.dry:
            return 0
        if any("weak" in job.setting.name for job in missing):
            pretrain_weakly(output)
        failed = _make_all(missing, output, arguments.jobs, time.time() + 60 * arguments.minutes)
    import claims_report

    refused = (output / FAILED).read_text(encoding="utf-8").splitlines() if (output / FAILED).exists() else []
    claims_report.write(records(output), refused)
    return 1 if failed else 0


def _make_all(missing: Sequence[Job], output: Path, processes: int, until: float) -> list[str]:
    os.environ["OMP_NUM_THREADS"] = "1"  # read when a worker starts
    said = {}
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(make, job, output, until): job for job in missing}
        for future in as_completed(futures):
            said[_name(futures[future])] = future.result()
    failed = [f"{name}: {reason}" for name, reason in said.items() if reason.startswith("failed")]
    left = [name for name, reason in said.items() if reason.startswith("left")]
    print(f"{len(said) - len(failed) - len(left)} runs made, {len(failed)} failed, {len(left)} left", flush=True)
    for line in failed:
        print(line, file=sys.stderr, flush=True)
    _keep_failed(output / FAILED, set(said) - set(left), failed)
    return failed


def _name(job: Job) -> str:
    return f"{job.setting.name}, {job.method}{f' ({job.control})' if job.control else ''}, seed {job.seed}"


def _keep_failed(file: Path, tried: set[str], failed: Sequence[str]) -> None:
    """Write down what failed, beside what failed in earlier calls and was not tried again in this one."""
    before = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    lines = [line for line in before if line.partition(": failed")[0] not in tried] + list(failed)
    file.write_text("".join(f"{line}\n" for line in sorted(lines)), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
