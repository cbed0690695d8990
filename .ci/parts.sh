#!/usr/bin/env bash
# The parts that tests need besides Python: a broker, two databases, linters of what we ship. Installs what is missing
# and leaves alone what is there. Needs root for that; without it says what will be skipped, and goes on.
# Two checkouts may run this at once: they share the cache folder, and its lock.
set -euo pipefail

trixie=${ESP_INGEST_TRIXIE:-/var/cache/esp-ingest/trixie}

has_trixie() { [ -x "$trixie/usr/lib/postgresql/17/bin/postgres" ] && compgen -G "$trixie/usr/lib/postgresql/17/lib/timescaledb-*.so" >/dev/null; }
has_trixie_tools() { [ -x "$trixie/usr/bin/pgbackrest" ] && [ -x "$trixie/usr/bin/gitleaks" ] && [ -x "$trixie/usr/bin/kubectl" ]; }
has_postgresql() { [ -x /usr/lib/postgresql/15/bin/postgres ]; }

# One Debian package a missing program.
missing_packages() {
  [ -x /usr/sbin/mosquitto ] || command -v mosquitto >/dev/null || echo mosquitto
  command -v mosquitto_sub >/dev/null || echo mosquitto-clients
  command -v promtool >/dev/null || echo prometheus
  command -v amtool >/dev/null || echo prometheus-alertmanager
  command -v valgrind >/dev/null || echo valgrind
  has_postgresql || echo postgresql-15
  [ -x /usr/bin/chromium ] || command -v chromium >/dev/null || echo chromium
  command -v jq >/dev/null || echo jq
  [ -x /usr/sbin/pgbouncer ] || echo pgbouncer
  command -v pgbackrest >/dev/null || echo pgbackrest
  has_trixie || [ -x /usr/sbin/debootstrap ] || echo debootstrap
}

install_packages() {
  echo "   installing $*"
  # Daemons that a package would start at once would hold 1883, 9090 and 5432: the tests start their own.
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  export DEBIAN_FRONTEND=noninteractive
  local log
  log=$(mktemp)
  if ! { apt-get update -qq && apt-get install -qq -y --no-install-recommends "$@"; } >"$log" 2>&1; then
    tail -n 5 "$log"
    return 1
  fi
  rm -f "$log"
}

# Debian 13 has TimescaleDB, Debian 12 has not, and its libc is too old for the package: a folder of its own.
install_trixie() {
  echo "   making $trixie (45 s, 700 MB)"
  local fresh
  fresh=$(mktemp -d "$trixie.XXXXXX")
  if ! debootstrap --variant=minbase --include=postgresql-17,postgresql-17-timescaledb,pgbackrest,gitleaks,kubectl trixie "$fresh" \
    ${ESP_INGEST_DEBIAN_MIRROR:+"$ESP_INGEST_DEBIAN_MIRROR"} >"$fresh.log" 2>&1; then
    tail -n 5 "$fresh.log"
    rm -rf "$fresh" "$fresh.log"
    return 1
  fi
  chmod 755 "$fresh"
  rm -rf "$trixie" "$fresh.log"
  mv "$fresh" "$trixie"
}

# A folder that an earlier version of this script made.
add_trixie_tools() {
  echo "   adding pgbackrest, gitleaks and kubectl to $trixie"
  DEBIAN_FRONTEND=noninteractive chroot "$trixie" sh -c 'apt-get update -qq && apt-get install -qq -y --no-install-recommends pgbackrest gitleaks kubectl' \
    >/dev/null 2>&1
}

command -v node >/dev/null || echo "   node is missing: tests on TimescaleDB community edition will be skipped, see docs/development.md"

packages=$(missing_packages)
if [ -z "$packages" ] && has_trixie && has_trixie_tools; then
  echo "   all there"
elif [ "$(id -u)" != 0 ]; then
  echo "   without root these stay missing, and tests that need them are skipped: $(echo $packages) $(has_trixie || echo TimescaleDB)"
elif ! command -v apt-get >/dev/null; then
  echo "   without apt-get these stay missing, and tests that need them are skipped: $(echo $packages) $(has_trixie || echo TimescaleDB)"
else
  mkdir -p "$(dirname "$trixie")"
  exec 9>"$(dirname "$trixie")/.lock"
  flock 9
  packages=$(missing_packages) # another checkout may have been first
  # shellcheck disable=SC2086 # one word a package
  [ -z "$packages" ] || install_packages $packages
  has_trixie || install_trixie
  has_trixie_tools || add_trixie_tools
fi
