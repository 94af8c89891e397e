#!/bin/sh
# Starts the broker in an official image of Redis or Valkey. The password comes from a secret and goes into a file in
# memory: it is in no argument list, no environment, and not in `docker inspect`.
set -eu
umask 077
server=$(command -v valkey-server || command -v redis-server)
{
    cat /etc/packtrain/broker.conf
    printf 'maxmemory %s\nrequirepass %s\n' "${BROKER_MEMORY:-1gb}" "$(cat /run/secrets/broker_password)"
} >/tmp/broker.conf
# glibc keeps more small pieces at hand: a claim among a million jobs takes half as long (see broker/server.py).
export GLIBC_TUNABLES=glibc.malloc.tcache_count=4096
exec "$server" /tmp/broker.conf
