"""usage: scripts/chaos kills [--kills 50] [--seed 1] [--plane shm]
       scripts/chaos proxy [--harms 50] [--seed 1] [--plane shm]
       scripts/chaos relays [--faults 50] [--seed 1] [--plane shm]
       scripts/chaos workers [--kills 200] [--seed 1] [--plane shm | relays] [--no-replace]
       scripts/soak [--minutes 10] [--seed 1]

kills and proxy inject faults into a training with 2 aggregators and 3 worker processes. They compare its final
parameters and every sum with those of an undisturbed training that has the same number of steps. relays does the same
with two hosts of two workers, a relay on each and two owners, and checks that nothing is left behind. workers kills
and replaces the workers of an elastic training, compares the bits of all after each step, and prints what a kill costs;
with `--plane relays`, on two hosts with a relay on each, which may be killed too.
soak injects
faults of all kinds while many small jobs start and end. It checks every sum, and samples the memory, open files and
threads of the processes that live through the run. The exit status is 1 if a bit differs, if something is left, or if
soak reports a problem.
"""

import argparse
import pathlib
import sys
import tempfile

from faults import runs, soak, worker_kills
from psum.planes import CHOICES
from tests.signals import heed_signals


def main() -> int:
    """Run the chosen test and print its results."""
    parser = argparse.ArgumentParser(prog="faults", usage="see scripts/chaos and scripts/soak", description=__doc__)
    which = parser.add_subparsers(dest="run", required=True)
    kills = which.add_parser("kills", help="kill -9 of the aggregators")
    kills.add_argument("--kills", type=int, default=50, help="number of kills (50)")
    proxy = which.add_parser("proxy", help="a TCP proxy that cuts, delays and stalls connections")
    proxy.add_argument("--harms", type=int, default=50, help="number of faults besides cuts at random bytes (50)")
    relays = which.add_parser("relays", help="kill -9, SIGTERM and cuts of relays and owners")
    relays.add_argument("--faults", type=int, default=50, help="number of faults (50)")
    workers = which.add_parser("workers", help="kill -9 of the workers of an elastic job, which are replaced")
    workers.add_argument("--kills", type=int, default=200, help="number of kills (200)")
    workers.add_argument("--no-replace", action="store_true", help="start no other worker; at most two are killed")
    long = which.add_parser("soak", help="faults of all kinds, with many small jobs")
    long.add_argument("--minutes", type=float, default=10.0, help="duration (10)")
    for each in (kills, proxy, relays, workers):
        choices = [*CHOICES[1:], *([worker_kills.RELAYS] if each is workers else [])]
        each.add_argument("--plane", choices=choices, default="shm", help="plane for large payloads (shm)")
    for each in (kills, proxy, relays, workers, long):
        each.add_argument("--seed", type=int, default=1, help="seed for times and targets of faults (1)")
    args = parser.parse_args()
    # A background shell script may ignore signals. Worker processes must not inherit that.
    heed_signals()

    def progress(line: str) -> None:
        print(line, flush=True)

    with tempfile.TemporaryDirectory(prefix="psum-chaos-") as name:
        directory = pathlib.Path(name)
        if args.run == "soak":
            soaked = soak.soak(directory, args.minutes, args.seed)
            for what, text in soaked.table.items():
                print(f"{what:28} {text}")
            for problem in soaked.problems:
                print(f"PROBLEM: {problem}")
            print(f"{len(soaked.problems)} problems" if soaked.problems else "no hangs, no wrong sums, no growth")
            return 1 if soaked.problems else 0
        if args.run == "kills":
            report = runs.kill_aggregators(directory, args.kills, args.seed, args.plane, progress)
        elif args.run == "workers":
            given = args.kills, args.seed, args.plane, progress
            report = worker_kills.kill_workers(directory, *given, replace=not args.no_replace)
            for problem in (problems := report.pop("problems"))[:20]:
                print(f"PROBLEM: {problem}")
        elif args.run == "relays":
            report = runs.disturb_relays(directory, args.faults, args.seed, args.plane, progress)
            if left := report.pop("left"):
                print(f"LEFT BEHIND: {left}")
        else:
            report = runs.disturb_connections(directory, args.harms, args.seed, args.plane, progress)
    for what, count in report.items():
        if what != "same":
            print(f"{what:24} {count:7}")
    if args.run == "workers":
        print("all members held the same bits after each step" if report["same"] else f"{len(problems)} PROBLEMS")
    else:
        print("same bits as the undisturbed run" if report["same"] else "DIFFERENT from the undisturbed run")
    return 0 if report["same"] else 1


if __name__ == "__main__":
    sys.exit(main())
