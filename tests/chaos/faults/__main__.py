"""usage: scripts/chaos kills [--kills 50] [--seed 1] [--plane shm]
       scripts/chaos proxy [--harms 50] [--seed 1] [--plane shm]
       scripts/soak [--minutes 10] [--seed 1]

kills and proxy disturb a training over 2 aggregators and 3 worker processes, and compare its final parameters and
every sum with those of an undisturbed one of as many steps. soak causes faults of all kinds while many small jobs come
and go, checks every sum, and looks at the memory, files and threads of what lives through it. The exit status is 1
where a bit differs, or something happened or grew that may not.
"""

import argparse
import pathlib
import sys
import tempfile

from faults import runs, soak
from tests.signals import heed_signals


def main() -> int:
    """Runs what is asked for and prints what came of it."""
    parser = argparse.ArgumentParser(prog="faults", usage="see scripts/chaos and scripts/soak", description=__doc__)
    which = parser.add_subparsers(dest="run", required=True)
    kills = which.add_parser("kills", help="kill -9 of the aggregators")
    kills.add_argument("--kills", type=int, default=50, help="how often (50)")
    proxy = which.add_parser("proxy", help="a TCP proxy that cuts, delays and falls silent")
    proxy.add_argument("--harms", type=int, default=50, help="how often, besides the cuts at random bytes (50)")
    long = which.add_parser("soak", help="everything at once, with many small jobs")
    long.add_argument("--minutes", type=float, default=10.0, help="for how long (10)")
    for each in (kills, proxy):
        each.add_argument(
            "--plane", choices=["inline", "direct", "shm"], default="shm", help="how payloads cross (shm)"
        )
    for each in (kills, proxy, long):
        each.add_argument("--seed", type=int, default=1, help="of moments and victims (1)")
    args = parser.parse_args()
    # What is sent to workers is to reach them, in the background of a shell script too.
    heed_signals()

    def say(line: str) -> None:
        print(line, flush=True)

    with tempfile.TemporaryDirectory(prefix="psum-chaos-") as name:
        directory = pathlib.Path(name)
        if args.run == "soak":
            soaked = soak.soak(directory, args.minutes, args.seed)
            for what, text in soaked.table.items():
                print(f"{what:28} {text}")
            for problem in soaked.problems:
                print(f"PROBLEM: {problem}")
            print(f"{len(soaked.problems)} problems" if soaked.problems else "nothing hung, nothing was wrong or grew")
            return 1 if soaked.problems else 0
        if args.run == "kills":
            report = runs.kill_aggregators(directory, args.kills, args.seed, args.plane, say)
        else:
            report = runs.harm_connections(directory, args.harms, args.seed, args.plane, say)
    for what, count in report.items():
        if what != "same":
            print(f"{what:24} {count:7}")
    print("the same bits as undisturbed" if report["same"] else "DIFFERENT from the undisturbed run")
    return 0 if report["same"] else 1


if __name__ == "__main__":
    sys.exit(main())
