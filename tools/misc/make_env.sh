# Makes or reuses the Python environment that tools/quickstart.sh and tools/run_tests.sh share.
#
#     source tools/misc/make_env.sh
#
# The environment is $VENV, or .venv in the repository. It gets requirements/pinned.txt and this
# package as an editable install; a stamp in it says for which requirements that was done, so that
# a second run installs nothing. With OPENMMLAB=original it gets requirements/original.txt, and is
# .venv-original. Exports PYTHON, the environment's interpreter.

OPENMMLAB=${OPENMMLAB:-}

_base_python() {
    local candidate first=10 last=13
    [ -z "$OPENMMLAB" ] || { first=11 last=12; }
    for candidate in python3 python3.13 python3.12 python3.11 python3.10 python; do
        if "$candidate" -c "import sys; sys.exit(not (3, $first) <= sys.version_info[:2] <= (3, $last))" \
            2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "make_env: no Python 3.$first to 3.$last found on PATH; install one and run this again" >&2
    return 1
}

# A machine without a desktop often lacks libGL, which opencv-python links to; the headless build of
# the same version has all that mmcv uses.
_use_headless_opencv_if_needed() {
    local version
    "$PYTHON" -c 'import cv2' 2>/dev/null && return
    version=$("$PYTHON" -c 'from importlib.metadata import version; print(version("opencv-python"))')
    echo 'make_env: no libGL on this machine, taking opencv-python-headless'
    "$PYTHON" -m pip uninstall --quiet --yes opencv-python &&
        "$PYTHON" -m pip install --quiet --no-deps --force-reinstall \
            "opencv-python-headless==$version" &&
        "$PYTHON" -c 'import cv2'
}

_make_env() {
    local root venv stamp base pins="requirements/${OPENMMLAB:-pinned}.txt" quiet=--quiet
    root=$(CDPATH= cd -- "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd) || return
    venv=${VENV:-$root/.venv${OPENMMLAB:+-$OPENMMLAB}}
    export PYTHON="$venv/bin/python"
    stamp="$root $(cat "$root/$pins" "$root/setup.py" | cksum)"
    if [ -x "$PYTHON" ] && [ "$(cat "$venv/mmvisiongru.stamp" 2>/dev/null)" = "$stamp" ]; then
        echo "make_env: reusing $venv"
        return
    fi
    echo "make_env: installing $pins into $venv (about 5 GB the first time)"
    if [ ! -x "$PYTHON" ]; then
        base=$(_base_python) && "$base" -m venv "$venv" || return
    fi
    # On a terminal pip's progress bars are worth having.
    [ -t 1 ] && quiet=
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    "$PYTHON" -m pip install $quiet -r "$root/$pins" &&
        "$PYTHON" -m pip install $quiet --no-deps --no-build-isolation -e "$root" &&
        _use_headless_opencv_if_needed &&
        echo "$stamp" > "$venv/mmvisiongru.stamp"
}

_make_env || { echo 'make_env: failed, see above' >&2; return 1 2>/dev/null || exit 1; }
