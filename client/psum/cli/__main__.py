"""`python -m psum.cli` runs the `psum` command if an environment's scripts are not on PATH."""

from psum.cli import main

if __name__ == "__main__":
    main(prog_name="psum")
