"""Runs many random histories; see scripts/model."""

import argparse
import collections
import logging
import sys
import time

from simulation import Counters, Failure, History, run, shrink

_SOME = {"yes": True, "no": False, "some": None}


def main() -> int:
    """Run histories until one fails. Return the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/model", description=__doc__)
    parser.add_argument("--histories", type=int, default=1000, help="number of histories (1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first history; each next one adds 1 (0)")
    parser.add_argument("--relays", choices=_SOME, default="some", help="which histories: with relays or not (some)")
    parser.add_argument("--direct", choices=_SOME, default="some", help="which: payloads follow messages or not (some)")
    parser.add_argument("--elastic", action="store_true", help="histories of elastic jobs")
    parser.add_argument("--keep-going", action="store_true", help="count failures by kind instead of stopping at one")
    arguments = parser.parse_args()
    # Silence the aggregators' log messages about the injected faults.
    logging.disable(logging.CRITICAL)
    began = time.monotonic()
    counters = Counters()
    kinds: collections.Counter[str] = collections.Counter()
    for seed in range(arguments.seed, arguments.seed + arguments.histories):
        try:
            run(
                History.draw(
                    seed,
                    relayed=_SOME[arguments.relays],
                    elastic=arguments.elastic,
                    direct=_SOME[arguments.direct],
                ),
                counters,
            )
        except Failure as failure:
            if not arguments.keep_going:
                print(shrink(failure).report)
                again = f"scripts/model --seed {seed} --histories 1 --relays {arguments.relays}"
                again += f" --direct {arguments.direct}"
                again += " --elastic" if arguments.elastic else ""
                print(f"\nhistory {seed} failed; repeat it with {again}")
                return 1
            kinds[failure.kind] += 1
            print(failure.report.splitlines()[0], flush=True)
    print(f"seeds {arguments.seed} to {arguments.seed + arguments.histories - 1}, {time.monotonic() - began:.0f} s")
    print(counters)
    for kind, count in kinds.most_common():
        print(f"{count:>12,} failed: {kind}")
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(main())
