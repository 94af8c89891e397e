#!/bin/sh
# Makes what docker-compose.yml and compose.node.yml read: deploy/secrets/ and .env. Keeps what is there already.
#
#   sh deploy/init-secrets.sh            both, in the checkout
#   sh deploy/init-secrets.sh FOLDER     secrets alone, elsewhere; name the folder as SECRETS in .env
#
# The folder is closed to other users (0700). The files in it are readable (0444), since the users within containers,
# who are not you, read them: Docker shows each container only those that its service names.
set -eu
cd "$(dirname "$0")/.."
folder=${1:-deploy/secrets}
mkdir -p "$folder"
chmod 0700 "$folder"

secret() { # NAME: 192 random bits as hex digits
    [ ! -s "$folder/$1" ] || return 0
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$folder/$1.new"
    chmod 0444 "$folder/$1.new"
    mv "$folder/$1.new" "$folder/$1"
    echo "made $folder/$1"
}
mkdir -p "$folder/users" # of the broker, one for each part: docs/security.md
for name in password api_key flower_password grafana_password \
    users/coordinator users/gateway users/node users/client users/flower users/reader; do secret "$name"; done
# A machine that is not the head has its token here; compose wants every secret's file to be there.
if [ ! -e "$folder/join" ]; then
    (umask 022 && : >"$folder/join")
fi
[ $# -eq 0 ] || exit 0
if [ ! -e .env ]; then
    cp .env.example .env
    echo "made .env; look into it"
fi
mkdir -p models
