#!/usr/bin/env bash
# Checks the style and runs the tests, in the environment that tools/misc/make_env.sh makes or reuses.
#
#     tools/run_tests.sh [--stack original] [--long] [pytest arguments]
#
# --stack original takes the original OpenMMLab packages of requirements/original.txt, in an environment of
# its own, and runs what a classifier needs: mmcv-lite has no compiled operators, which mmseg imports.
# --long adds the tests that take minutes. There is a process for each core, eight at most; -n 0 takes one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folders=
if [ "${1:-}" = '--stack' ]; then
    [ "${2:-}" = original ] || { echo 'run_tests: --stack takes original' >&2; exit 2; }
    OPENMMLAB=original
    folders='tests/test_ops tests/test_models tests/test_checkpoint tests/test_engine'
    shift 2
fi
# shellcheck source=tools/misc/make_env.sh
source tools/misc/make_env.sh

if [ -z "$folders" ]; then
    "$PYTHON" -m ruff check .
    "$PYTHON" -m ruff format --check .
fi

if [ "${1:-}" = --long ]; then
    shift
    set -- -m '' "$@"
fi
# The models of the tests are so small that more threads only wait for each other.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# A file stays in one process: its tests share what is slow to make. More than eight would wait for memory.
exec "$PYTHON" -m pytest -n auto --maxprocesses 8 --dist loadfile $folders "$@"
