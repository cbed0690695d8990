#!/usr/bin/env bash
# Everything that `make test` does, in order, with the time of each step. pytest runs last, so that its summary is the
# last thing on the screen, and its exit status is ours (5, no tests collected, is a failure too).
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
started=$SECONDS
# Where a machine sets it, each of the hundreds of processes that the tests start compiles all its modules anew, which
# takes longer than all else that most of them do.
unset PYTHONDONTWRITEBYTECODE

step() {
  local name=$1 from=$SECONDS
  shift
  echo "== $name"
  "$@" || { echo "== $name FAILED after $((SECONDS - from)) s"; exit 1; }
  echo "== $name: $((SECONDS - from)) s"
}

step "virtual environment" make --no-print-directory setup
step "brokers, databases, linters" .ci/parts.sh
step "lint" make --no-print-directory lint
step "types" make --no-print-directory types
step "secrets, dependencies, licences" make --no-print-directory audit

echo "== tests: fault, browser, integration, property, unit ($((SECONDS - started)) s so far)"
status=0
# Three at a time on two cores, since most tests wait for processes that they have started. A file stays together, with what
# it has started. Short files come last, so that no worker ends long before the others.
$bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not soak" \
  tests/fault tests/browser tests/integration tests/property tests/unit "$@" || status=$?
[ "${CI:-}" = true ] || echo "== total: $((SECONDS - started)) s"
exit "$status"
