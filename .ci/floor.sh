#!/usr/bin/env bash
# The unit tests with the oldest versions that pyproject.toml allows, in an environment that is thrown away.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$PWD/.venv/bin/uv
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"$uv" venv --quiet --python .venv/bin/python "$venv"
export VIRTUAL_ENV=$venv
"$uv" pip install --quiet --resolution lowest-direct -e ".[demo,api]"
"$uv" pip install --quiet pytest pytest-timeout hypothesis pyyaml  # what is installed already stays as it is
"$uv" pip list --quiet | grep -iE "^(paho|psycopg|pydantic|tenacity|prometheus|numpy|msgspec|iotcore|pixeltable|rich)"
# The instruction budget is one for the versions in requirements.lock.
PYTHONDONTWRITEBYTECODE=1 "$venv/bin/python" -m pytest -q tests/unit --ignore tests/unit/test_bench_guard.py "$@"
