#!/bin/bash
# Installs what the lab runs, only where it is missing: Debian 12 packages and the application's npm package.
# No daemon is started, no cluster created, and nothing that was there before is touched. Safe to repeat.
set -euo pipefail
cd "$(dirname "$0")"
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

say() { printf 'install: %s\n' "$*"; }
die() { printf 'install: %s\n' "$*" >&2; exit 1; }

missing=()
need() { # need PACKAGE FILE-OR-PROGRAM…: PACKAGE is missing when one of them is
  local package=$1 program
  shift
  for program in "$@"; do
    if [[ $program == /* ]]; then [[ -x $program ]] && continue; else command -v "$program" >/dev/null && continue; fi
    missing+=("$package")
    return 0
  done
}

need postgresql-15 /usr/lib/postgresql/15/bin/postgres /usr/lib/postgresql/15/bin/pg_rewind
need postgresql-client-15 /usr/lib/postgresql/15/bin/psql
need haproxy haproxy
need pgbouncer pgbouncer
need bind9 named
need bind9-utils named-checkconf
# What a person types of an exported runbook.
need bind9-dnsutils dig nsupdate
need socat socat
need curl curl
need unbound unbound
need prometheus prometheus promtool
need prometheus-alertmanager prometheus-alertmanager amtool
need prometheus-node-exporter prometheus-node-exporter
need prometheus-postgres-exporter prometheus-postgres-exporter
need rclone rclone
# Caches, for the tests of tasks/cache.
need redis-server redis-server
need varnish varnishd
node_major() { node --version 2>/dev/null | sed -E 's/^v([0-9]+).*/\1/' || true; }
major=$(node_major)
if [[ ${major:-0} -lt 18 ]]; then missing+=(nodejs npm); elif ! command -v npm >/dev/null; then missing+=(npm); fi
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)

as_root() {
  if [[ $EUID -eq 0 ]]; then "$@"; else sudo "$@"; fi
}

install_missing() {
  say "missing: ${missing[*]}"
  command -v apt-get >/dev/null || die "apt-get is not here; this installer is for Debian 12. Install by hand: ${missing[*]}"
  [[ $EUID -eq 0 ]] || command -v sudo >/dev/null || die "not root, and no sudo; as root run: apt-get install ${missing[*]}"

  local policy=/usr/sbin/policy-rc.d saved=
  if [[ -e $policy ]]; then
    saved=$(mktemp)
    as_root cp -p "$policy" "$saved"
  fi
  # 101 is "action forbidden by policy": no package may start its daemon (invoke-rc.d(8)).
  printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
  as_root chmod 755 "$policy"
  # shellcheck disable=SC2064  the value of now is meant
  trap "restore '$policy' '$saved'" EXIT

  # Only services that were not here before may be disabled afterwards.
  local units=(postgresql haproxy pgbouncer named unbound prometheus prometheus-alertmanager redis-server varnish
    prometheus-node-exporter prometheus-postgres-exporter) unit new=()
  local systemd=no
  [[ -d /run/systemd/system ]] && systemd=yes
  if [[ $systemd == yes ]]; then
    for unit in "${units[@]}"; do systemctl cat "$unit.service" >/dev/null 2>&1 || new+=("$unit.service"); done
  fi

  if [[ " ${missing[*]} " == *" postgresql-15 "* && ! -e /etc/postgresql-common/createcluster.conf ]]; then
    as_root mkdir -p /etc/postgresql-common
    printf 'create_main_cluster = false\n' | as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
  fi
  local install=(env DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1 apt-get install -y -q --no-install-recommends
    -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "${missing[@]}")
  say "apt-get update and install"
  as_root apt-get update -q || say "apt-get update failed; trying with the package lists that are here"
  as_root "${install[@]}" || die "apt-get could not install: ${missing[*]}"

  for unit in ${new[@]+"${new[@]}"}; do
    if systemctl cat "$unit" >/dev/null 2>&1; then as_root systemctl disable --now "$unit"; fi
  done
}

restore() { # restore POLICY SAVED
  if [[ -n $2 ]]; then as_root cp -p "$2" "$1" && rm -f "$2"; else as_root rm -f "$1"; fi
}

if [[ ${#missing[@]} -gt 0 ]]; then
  install_missing
  major=$(node_major)
  [[ ${major:-0} -ge 18 ]] || die "node is ${major:-missing}; the application needs 18 or newer"
else
  say "every program is here"
fi

if [[ app/node_modules/.package-lock.json -ot app/package-lock.json ]]; then
  say "npm ci for the application"
  (cd app && npm ci --no-audit --no-fund --omit=dev --loglevel=error)
  touch app/node_modules/.package-lock.json # npm keeps its own time stamp; ours says when it was checked
else
  say "the application's npm package is here"
fi
