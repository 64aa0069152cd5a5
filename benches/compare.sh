#!/usr/bin/env bash
# Times offshoot and its rivals in turns and prints a Markdown table: benches/compare.sh step|lm|features|knn [--help].
# Python is $PYTHON, or the .venv of this repository; benches/README.md says what it needs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-.venv/bin/python}
if ! command -v "$python" > /dev/null; then
    echo "error: there is no Python at $python" >&2
    echo "hint: python3 -m venv .venv && .venv/bin/pip install -r benches/requirements.txt, or name one by PYTHON=..." >&2
    exit 1
fi
exec "$python" benches/compare.py "$@"
