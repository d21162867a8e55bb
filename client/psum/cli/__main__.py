"""`python -m psum.cli` is the `psum` command, for where the scripts of an environment are not on PATH."""

from psum.cli import main

if __name__ == "__main__":
    main(prog_name="psum")
