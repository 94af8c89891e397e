#!/bin/sh
# Installs those of the named Debian packages that are missing: packages.sh NAME...
# Where none is missing nothing is asked of any network, so that an image can be built without one.
set -eu
missing=
for name in "$@"; do
    dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q '^install ok installed$' || missing="$missing $name"
done
[ -n "$missing" ] || exit 0
apt-get update -qq
# shellcheck disable=SC2086 # one word for each package
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing
rm -rf /var/lib/apt/lists/*
