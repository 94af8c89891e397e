#!/bin/sh
# Starts the broker in an official image of Redis or Valkey. Who may do what stands in /data/users.acl, as hashes: no
# password is in an argument list, an environment, or `docker inspect`.
set -eu
umask 077
server=$(command -v valkey-server || command -v redis-server)
{
    cat /etc/packtrain/broker.conf
    printf 'maxmemory %s\naclfile /data/users.acl\n' "${BROKER_MEMORY:-1gb}"
} >/tmp/broker.conf
# glibc keeps more small pieces at hand: a claim among a million jobs takes half as long (see broker/server.py).
export GLIBC_TUNABLES=glibc.malloc.tcache_count=4096
exec "$server" /tmp/broker.conf
