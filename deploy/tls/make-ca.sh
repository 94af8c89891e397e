#!/usr/bin/env bash
# A private certificate authority and a certificate signed by it, by openssl: for a broker or a gateway of your own.
# `packtrain up --tls` does the same by itself for the broker that it runs.
#
#   deploy/tls/make-ca.sh DIR NAME...     names and addresses by which clients reach the server, the first is its title
#   deploy/tls/make-ca.sh certs head 192.168.1.10 127.0.0.1
#
# DIR/ca.pem      what clients must have: PACKTRAIN_CA=ca.pem
# DIR/ca.key      signs; keep it where nobody is, never on a server. Made once: run again for further certificates
# DIR/NAME.pem, DIR/NAME.key   of the server named first
set -euo pipefail
umask 077

if (($# < 2)); then
    sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
dir=$1 title=$2
shift
mkdir -p "$dir"
days=3650

if [[ ! -e $dir/ca.key ]]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days "$days" -sha256 \
        -subj "/CN=Packtrain fleet" -addext "basicConstraints=critical,CA:TRUE,pathlen:0" \
        -addext "keyUsage=critical,keyCertSign,cRLSign" -keyout "$dir/ca.key" -out "$dir/ca.pem" 2>/dev/null
fi

names=()
for name in "$@"; do
    if [[ $name =~ ^[0-9.]+$ || $name == *:* ]]; then names+=("IP:$name"); else names+=("DNS:$name"); fi
done
extensions=$(mktemp)
trap 'rm -f "$extensions" "$dir/$title.csr"' EXIT
{
    echo "basicConstraints=critical,CA:FALSE"
    echo "extendedKeyUsage=serverAuth"
    echo "authorityKeyIdentifier=keyid"
    echo "subjectAltName=$(IFS=,; echo "${names[*]}")"
} >"$extensions"
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$title" \
    -keyout "$dir/$title.key" -out "$dir/$title.csr" 2>/dev/null
openssl x509 -req -in "$dir/$title.csr" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" -days "$days" -sha256 \
    -extfile "$extensions" -out "$dir/$title.pem" 2>/dev/null
echo "$dir/$title.pem and $dir/$title.key, signed by $dir/ca.pem"
