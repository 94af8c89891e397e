#!/bin/sh
# Well when it answers and has loaded its data.
cli=$(command -v valkey-cli || command -v redis-cli)
REDISCLI_AUTH=$(cat /run/secrets/broker_password) "$cli" ping | grep -q PONG
