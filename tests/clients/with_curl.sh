# curl: an answer, a stream, and an error that a script notices.
set -eu

curl -sS http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' -d '{
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Say hi."}],
    "max_tokens": 10,
    "temperature": 0
}'
# --- end of what docs/clients.md shows

ask() {
    curl -sS http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' "$@"
}
asked='"messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 10, "temperature": 0'
ask -d "{\"model\": \"smollm2\", $asked}" | grep -q Hello
ask -N -d "{\"model\": \"smollm2\", \"stream\": true, $asked}" | tail -n 2 | grep -qx 'data: \[DONE\]'
ask -d "{\"model\": \"nobody\", $asked}" | grep -q '"code":"model_not_found"'
if ask --fail -d "{\"model\": \"nobody\", $asked}" 2>/dev/null; then echo 'curl --fail noticed nothing' >&2; exit 1; fi
curl -sS http://127.0.0.1:8080/v1/models | grep -q '"id":"smollm2"'
