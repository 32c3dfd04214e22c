# Sourced by the scripts beside it, with $root set. `ready EXTRA...` returns when .venv holds what the files
# requirements/EXTRA.txt and EXTRA-nodeps.txt list (a copy of each in .venv/pins says so), and exits otherwise.

ready() {
    up_to_date "$@" && return
    for python in python3.11 python3.12 python3.13 python3 python; do
        if suitable "$python"; then
            "$python" -I "$root/bin/environment.py" "$@" || exit
            return
        fi
    done
    echo 'distill needs Python 3.11 or later that can make environments (modules venv and ensurepip), and' >&2
    echo 'found none as python3.11, python3.12, python3.13, python3 or python. Install one, or what yours' >&2
    echo 'lacks (on Debian and Ubuntu the package python3-venv), and run this again.' >&2
    exit 2
}

up_to_date() {
    [ -x "$root/.venv/bin/python" ] || return
    for extra in "$@"; do
        for pins in "$root/requirements/$extra.txt" "$root/requirements/$extra-nodeps.txt"; do
            [ ! -e "$pins" ] || cmp -s "$pins" "$root/.venv/pins/${pins##*/}" || return
        done
    done
}

# Asks by trying: a version manager's stand-in may exist and not run, and some Pythons lack ensurepip.
suitable() {
    "$1" -I -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}
