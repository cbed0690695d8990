#!/usr/bin/env bash
# The unit tests under each newer Python that is on this machine, in environments that are thrown away.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$PWD/.venv/bin/uv
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# pyenv's interpreters, which its shims hide from uv.
for bin in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin; do PATH=$bin:$PATH; done
for version in 3.12 3.13 3.14; do
  if ! python=$("$uv" python find --no-python-downloads --system "$version" 2>/dev/null); then
    echo "== Python $version is not on this machine: left out"
    continue
  fi
  echo "== $("$python" --version)"
  "$uv" venv --quiet --python "$python" "$folder/$version"
  "$uv" pip install --quiet --python "$folder/$version/bin/python" --require-hashes -r requirements.lock
  "$uv" pip install --quiet --python "$folder/$version/bin/python" --no-deps --no-build-isolation -e .
  # The instruction budget is for one version of Python.
  PYTHONDONTWRITEBYTECODE=1 "$folder/$version/bin/python" -m pytest -q -n 2 -p no:cacheprovider tests/unit \
    --ignore tests/unit/test_bench_guard.py "$@"
done
