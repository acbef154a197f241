#!/usr/bin/env bash
# Checks the style and runs the tests, in the environment that tools/misc/make_env.sh makes or reuses.
#
#     tools/run_tests.sh [--long] [pytest arguments]
#
# --long adds the tests that take minutes.
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
exec "$PYTHON" -m pytest "$@"
