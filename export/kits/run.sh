#!/bin/sh
# Checks the files of this folder, times its model, and says what it took. PYTHON names the interpreter that has the engine.
set -eu
cd "$(dirname "$0")"
export ORT_DISABLE_TELEMETRY="${ORT_DISABLE_TELEMETRY:-1}"
if command -v sha256sum >/dev/null 2>&1; then
    sha256sum -c SHA256SUMS >/dev/null || { echo "a file of this kit was changed: copy it again" >&2; exit 1; }
fi
"${PYTHON:-python3}" runner.py job.json | "${PYTHON:-python3}" latency.py
