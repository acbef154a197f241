#!/usr/bin/env bash
# From a fresh clone to a trained and evaluated model, on any machine with Python and pip.
#
#     tools/quickstart.sh [segmentation|classification]
#
# Makes .venv (or uses $VENV), then runs tools/misc/quickstart.py, which says what it does. A second run
# reuses what is there, and one that was interrupted goes on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

task=${1:-segmentation}
if [ $# -gt 1 ] || [[ ! $task =~ ^(segmentation|classification)$ ]]; then
    echo "usage: tools/quickstart.sh [segmentation|classification], got: $*" >&2
    exit 2
fi
# shellcheck source=tools/misc/make_env.sh
source tools/misc/make_env.sh

# One thread computes while others load: two would gain a third where nothing else runs, and lose a factor of
# ten where something does, as they wait for each other by spinning. Results do not depend on the cores either.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$PYTHON" tools/misc/quickstart.py "$task"
