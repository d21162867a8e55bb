"""usage: scripts/chaos kills [--kills 50] [--seed 1]    |    scripts/chaos proxy [--harms 50] [--seed 1]

Disturbs a training over 2 aggregators and 3 worker processes, and compares its final parameters and every sum with
those of an undisturbed one of as many steps. The exit status is 1 where a bit differs.
"""

import argparse
import pathlib
import sys
import tempfile

from faults import runs


def main() -> int:
    """Runs what is asked for and prints what came of it."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__.partition("\n\n")[2])
    which = parser.add_subparsers(dest="run", required=True)
    kills = which.add_parser("kills", help="kill -9 of the aggregators")
    kills.add_argument("--kills", type=int, default=50, help="how often (50)")
    proxy = which.add_parser("proxy", help="a TCP proxy that cuts, delays and falls silent")
    proxy.add_argument("--harms", type=int, default=50, help="how often, besides the cuts at random bytes (50)")
    for each in (kills, proxy):
        each.add_argument("--seed", type=int, default=1, help="of moments and victims (1)")
    args = parser.parse_args()

    def say(line: str) -> None:
        print(line, flush=True)

    with tempfile.TemporaryDirectory(prefix="psum-chaos-") as name:
        directory = pathlib.Path(name)
        if args.run == "kills":
            report = runs.kill_aggregators(directory, args.kills, args.seed, say)
        else:
            report = runs.harm_connections(directory, args.harms, args.seed, say)
    for what, count in report.items():
        if what != "same":
            print(f"{what:24} {count:7}")
    print("the same bits as undisturbed" if report["same"] else "DIFFERENT from the undisturbed run")
    return 0 if report["same"] else 1


if __name__ == "__main__":
    sys.exit(main())
