# Sourced by the scripts beside it, with $root set. `ready LAYER...` returns when .venv holds those layers
# of requirements/ (a layer's stamp, .venv/pins/LAYER.txt, is a copy of its pin file), and exits otherwise.

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
    for layer in "$@"; do
        cmp -s "$root/requirements/$layer.txt" "$root/.venv/pins/$layer.txt" || return
    done
}

# Asks by trying: a version manager's stand-in may exist and not run, and some Pythons lack ensurepip.
suitable() {
    "$1" -I -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}
