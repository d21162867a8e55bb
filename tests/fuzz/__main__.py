"""`scripts/fuzz`: feeds invalid input to everything in psum that parses bytes from the network."""

import argparse
import os
import sys
import time
import traceback

# gRPC logs each broken connection.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import uvloop

from psum.runtime import keep_large_blocks
from tests.fuzz.harness import Case
from tests.fuzz.run import SHARES, run, run_case


def main() -> int:
    """Run the fuzzer. Return 0 if nothing was found, else 1."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=200_000, help="number of inputs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="seed of all inputs (default: the time)")
    parser.add_argument("--target", choices=tuple(SHARES), action="append", help="only this target; may be repeated")
    parser.add_argument("--case", type=Case.parse, metavar="TARGET:SEED:NUMBER", help="repeat one input")
    given = parser.parse_args()
    keep_large_blocks(one_arena=True)
    try:
        if given.case is not None:
            uvloop.run(run_case(given.case))
            print("nothing was found")
            return 0
        print(f"seed {given.seed}", flush=True)
        targets = given.target or tuple(SHARES)
        outcomes = uvloop.run(run(given.inputs, given.seed, targets, lambda line: print(line, flush=True)))
    except BaseException as error:
        traceback.print_exception(error)
        print("FAILED")
        return 1
    for kind, count in sorted(outcomes.items(), key=lambda item: (item[0].partition(":")[0], -item[1])):
        print(f"{count:9} {kind}")
    print(f"nothing was found in {given.inputs} inputs")
    return 0


sys.exit(main())
