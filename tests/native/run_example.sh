#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# The C example as a reader would run it: run_example.sh RECEIVE SEND
set -eu
out=$(mktemp)
trap 'rm -f "$out"' EXIT
"$1" 0 >"$out" &
server=$!
for _ in $(seq 100); do
    grep -q listening "$out" && break
    sleep 0.05
done
port=$(sed -n 's/listening on port //p' "$out")
sent=$("$2" 127.0.0.1 "$port" "hello from C")
wait "$server"
cat "$out"
echo "$sent"
grep -q "received: length 12: hello from C" "$out"
grep -q "end of data" "$out"
test "$sent" = "sent: length 12, errno 0"
