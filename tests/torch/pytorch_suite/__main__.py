"""Runs PyTorch's own tests of torch.distributed and DistributedDataParallel with psum, and prints a table.

usage: python -m tests.torch.pytorch_suite [--ranks 4,8] [--json FILE] [NAME …]       NAME: a test; none: all tests

The tests are those that come with PyTorch (torch.testing._internal.distributed.distributed_test). All of them run with
Gloo too: what passes there is what a backend for the CPU can pass. Tests that want more ranks than the first number run
again with the next one.
"""

import argparse
import json
import pathlib

from tests.torch.pytorch_suite.report import table
from tests.torch.pytorch_suite.runs import run


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs PyTorch's own tests with psum and with Gloo.")
    parser.add_argument("--ranks", default="4,8")
    parser.add_argument("--json", type=pathlib.Path, help="where to write all outcomes")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    ranks = [int(number) for number in arguments.ranks.split(",")]
    outcomes = {backend: run(backend, ranks, arguments.names) for backend in ("gloo", "psum")}
    if arguments.json:
        arguments.json.write_text(json.dumps(outcomes, indent=1))
    print(table(outcomes["psum"], outcomes["gloo"]))


if __name__ == "__main__":
    main()
