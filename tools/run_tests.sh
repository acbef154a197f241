#!/usr/bin/env bash
# Checks the style and runs the tests, in the environment that tools/misc/make_env.sh makes or reuses.
#
#     tools/run_tests.sh [--long] [pytest arguments]
#
# --long adds the tests that take minutes. There is a process for each core, eight at most; -n 0 takes one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tools/misc/make_env.sh
source tools/misc/make_env.sh

"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .

if [ "${1:-}" = --long ]; then
    shift
    set -- -m '' "$@"
fi
# The models of the tests are so small that more threads only wait for each other.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# A file stays in one process: its tests share what is slow to make. More than eight would wait for memory.
exec "$PYTHON" -m pytest -n auto --maxprocesses 8 --dist loadfile "$@"
