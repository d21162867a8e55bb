# Shell functions that the scripts share. To be sourced from the root of the repository.

# Prints the path of a Python of one of the wanted versions ("3.11 3.12" by default), or says what to do.
find_python() {
    for version in ${1:-3.11 3.12}; do
        for candidate in "python$version" python3 python \
            "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python "/usr/bin/python$version"; do
            path=$(command -v "$candidate" 2>/dev/null) || continue
            # A pyenv shim exists for versions that are not selected; running it is the only way to know.
            # In an active environment the name means that environment's Python, which goes when the environment is made
            # anew: the one behind it is meant.
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

# What scripts/setup installs, for whoever works on psum.
EVERYTHING='-e .[aggregator,mxnet,demo,dev]'

# stamp_of PYTHON STAMP_FILE ARGUMENTS...: what an environment depends on. It holds absolute paths, so that a copy of it
# elsewhere would still mean the original.
stamp_of() {
    python=$1 stamp_file=$2
    shift 2
    printf '%s\n' "$PWD" "$python" "$*" | cat - "$stamp_file" | cksum
}

# is_made DIRECTORY PYTHON STAMP_FILE ARGUMENTS...: whether make_venv would find nothing to do.
is_made() {
    directory=$1
    shift
    [ "$(cat "$directory/stamp" 2>/dev/null)" = "$(stamp_of "$@")" ]
}

# make_venv DIRECTORY PYTHON STAMP_FILE ARGUMENTS...: a virtual environment with what `pip install ARGUMENTS` installs.
# Made once, and again when STAMP_FILE's content, the arguments, the Python or the place changed.
make_venv() {
    is_made "$@" && return
    directory=$1 python=$2 stamp_file=$3
    shift 3
    need_writable "$directory"
    set_up_since=$(date +%s)
    echo "setting up $directory, once: pip installs $* (1 to 5 minutes; needs the package registry)" >&2
    rm -rf "$directory"
    "$python" -m venv "$directory"
    # Not quiet: what it prints shows how far it is.
    "$directory/bin/python" -m pip install --disable-pip-version-check "$@" >&2
    stamp_of "$python" "$stamp_file" "$@" >"$directory/stamp"
    echo "set up $directory in $(($(date +%s) - set_up_since)) s" >&2
}

# need_writable WHAT: ends with an error where the repository cannot be written to, which WHAT needs.
need_writable() {
    [ -w . ] && return
    cat >&2 <<TEXT
$0: cannot write $1, since $PWD cannot be written to by $(id -un).
The scripts keep what they need in the repository. Run them in a copy that can be written to:
  cp -r $PWD ~/psum && cd ~/psum
To use psum alone, install it into an environment of yours: pip install '$PWD[aggregator,mxnet]'
TEXT
    exit 1
}
