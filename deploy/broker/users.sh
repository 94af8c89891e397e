#!/bin/sh
# Writes /data/users.acl, in our image: hashes and rules of the parts, made of the secrets, and those of machines that have
# joined, which stand in the file of before alone. The rules are those of this version, so an upgrade brings its own.
set -eu
umask 077
folder=/tmp/broker
mkdir -p "$folder/users"
cp /run/secrets/broker_password "$folder/password"
for role in coordinator gateway node client flower reader; do cp "/run/secrets/user_$role" "$folder/users/$role"; done
[ ! -f /data/users.acl ] || cp /data/users.acl "$folder/users.acl"
packtrain broker acl --secrets "$folder" >/data/users.acl.new
mv /data/users.acl.new /data/users.acl
