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

# make_venv DIRECTORY PYTHON STAMP_FILE ARGUMENTS...: a virtual environment with what `pip install ARGUMENTS` installs.
# Made once, and again when STAMP_FILE's content, the arguments, the Python or the place changed: an environment holds
# absolute paths, so that a copy of it elsewhere would still mean the original.
make_venv() {
    directory=$1 python=$2 stamp_file=$3
    shift 3
    stamp=$(printf '%s\n' "$PWD" "$python" "$*" | cat - "$stamp_file" | cksum)
    if [ "$(cat "$directory/stamp" 2>/dev/null)" != "$stamp" ]; then
        if ! [ -w . ]; then
            echo "$PWD cannot be written to, and $directory is to be made there: copy it to where you may write (cp -r)" >&2
            return 1
        fi
        echo "setting up $directory (once; needs the package registry) …" >&2
        rm -rf "$directory"
        "$python" -m venv "$directory"
        "$directory/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2
        printf '%s' "$stamp" >"$directory/stamp"
    fi
}
