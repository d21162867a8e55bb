# Shell functions for the scripts. Source this file from the root of the repository.

# Prints the path of a Python of one of the wanted versions ("3.11 3.12" by default). If there is none, says what to do.
find_python() {
    for version in ${1:-3.11 3.12}; do
        for candidate in "python$version" python3 python \
            "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python "/usr/bin/python$version"; do
            path=$(command -v "$candidate" 2>/dev/null) || continue
            # A pyenv shim exists also for versions that are not selected. Only running it shows whether it works.
            # In an active environment the name leads to that environment's Python, which disappears when the environment
            # is made again. So take the Python behind it.
            found=$("$path" -c 'import os, sys, venv, ensurepip
print(os.path.realpath(sys._base_executable), "%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
            if [ "${found##* }" = "$version" ]; then
                echo "${found% *}"
                return 0
            fi
        done
    done
    cat >&2 <<TEXT
psum needs Python ${1:-3.11 or 3.12} with its venv module, and found none on PATH, in pyenv or in /usr/bin.
  Debian, Ubuntu:  sudo apt-get install python3.11 python3.11-venv   (or python3.12 …)
  Fedora:          sudo dnf install python3.11
  pyenv:           pyenv install 3.11
MXNet has no wheel that runs on Python 3.13 or later.
TEXT
    return 1
}

# What scripts/setup installs, for work on psum.
EVERYTHING='-e .[aggregator,mxnet,demo,dev]'

# PyTorch for the CPU, which is much smaller than PyPI's for CUDA. --retries 1: a mirror may have all that pip needs, where
# PyTorch's index is out of reach.
TORCH='torch==2.13.0+cpu --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu'

# What the tests with PyTorch need. PyTorch's own tests import expecttest.
WITH_TORCH="-e .[torch,demo,dev] expecttest $TORCH"

# stamp_of PYTHON STAMP_FILE ARGUMENTS...: what an environment depends on, including its directory: an environment
# contains absolute paths, so a copy elsewhere would still use the original.
stamp_of() {
    python=$1 stamp_file=$2
    shift 2
    printf '%s\n' "$PWD" "$python" "$*" | cat - "$stamp_file" | cksum
}

# is_made DIRECTORY PYTHON STAMP_FILE ARGUMENTS...: whether make_venv has nothing to do.
is_made() {
    directory=$1
    shift
    [ "$(cat "$directory/stamp" 2>/dev/null)" = "$(stamp_of "$@")" ]
}

# make_venv DIRECTORY PYTHON STAMP_FILE ARGUMENTS...: makes a virtual environment and runs `pip install ARGUMENTS` in it.
# Does so once, and again if STAMP_FILE's content, the arguments, the Python or the directory has changed. If another script
# is making the environment, waits for it.
make_venv() {
    is_made "$@" && return
    need_writable "$1"
    mkdir -p "$1"
    (
        flock 9
        is_made "$@" || fill_venv "$@"
    ) 9<"$1"
}

# fill_venv: what make_venv does if there is something to do. Its arguments are the same.
fill_venv() {
    directory=$1 python=$2 stamp_file=$3
    shift 3
    set_up_since=$(date +%s)
    echo "setting up $directory, once: pip installs $* (1 to 5 minutes; needs the package registry)" >&2
    # Keeps the directory itself, which is the lock. 9<&-: what runs on after a kill does not hold it.
    "$python" -m venv "$directory" --clear 9<&-
    # Not quiet: the output shows the progress.
    "$directory/bin/python" -m pip install --disable-pip-version-check "$@" >&2 9<&-
    stamp_of "$python" "$stamp_file" "$@" >"$directory/stamp"
    echo "set up $directory in $(($(date +%s) - set_up_since)) s" >&2
}

# need_writable WHAT: ends with an error if the repository is read-only, because WHAT must be written to it.
need_writable() {
    [ -w . ] && return
    cat >&2 <<TEXT
$0: cannot write $1: $(id -un) may not write to $PWD.
The scripts keep their files in the repository. Run them in a copy that you can write to:
  cp -r $PWD ~/psum && cd ~/psum
To only use psum, install it into your own environment: pip install '$PWD[aggregator,mxnet]'
TEXT
    exit 1
}
