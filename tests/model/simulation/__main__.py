"""Runs many histories: see scripts/model."""

import argparse
import collections
import logging
import sys
import time

from simulation import Counters, Failure, History, run, shrink


def main() -> int:
    """Runs histories until one fails; returns the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/model", description=__doc__)
    parser.add_argument("--histories", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first; the next one's is one more (0)")
    parser.add_argument("--keep-going", action="store_true", help="count failures by kind instead of stopping at one")
    arguments = parser.parse_args()
    # What the aggregators have to say of the failures that they are put through.
    logging.disable(logging.CRITICAL)
    began = time.monotonic()
    tally = Counters()
    kinds: collections.Counter[str] = collections.Counter()
    for seed in range(arguments.seed, arguments.seed + arguments.histories):
        try:
            run(History.draw(seed), tally)
        except Failure as failure:
            if not arguments.keep_going:
                print(shrink(failure).account)
                print(f"\nhistory {seed} failed; scripts/model --seed {seed} --histories 1 runs it again")
                return 1
            kinds[failure.kind] += 1
            print(failure.account.splitlines()[0], flush=True)
    print(f"seeds {arguments.seed} to {arguments.seed + arguments.histories - 1}, {time.monotonic() - began:.0f} s")
    print(tally)
    for kind, count in kinds.most_common():
        print(f"{count:>12,} failed: {kind}")
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(main())
