#!/usr/bin/env bash
# Make .venv with the project in it (editable, with what the tests need); does nothing where it is up to date.
# PYTHON names the interpreter to use; uv's and pip's own settings (index, certificates, proxies) are respected.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/apt.sh

main() {
    local stamp
    stamp="$(pwd -P) $(cksum <pyproject.toml)" # an editable install knows where it lies: a moved clone is made anew
    if [ -x .venv/bin/python ] && [ "$(cat .venv/.installed 2>/dev/null)" = "$stamp" ]; then
        echo ".venv is up to date"
        return
    fi
    rm -f .venv/.installed # written last: an interrupted installation is repeated
    if command -v uv >/dev/null; then
        install_with_uv
    else
        install_with_pip
    fi
    printf '%s\n' "$stamp" >.venv/.installed
    echo ".venv made with $(command -v uv >/dev/null && echo uv || echo pip), $(.venv/bin/python --version)"
}

install_with_uv() {
    # who has set up pip for a company's index and certificates means every installer
    [ -z "${PIP_INDEX_URL:-}" ] || export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-${UV_INDEX_URL:-$PIP_INDEX_URL}}
    [ -z "${PIP_CERT:-}" ] || export SSL_CERT_FILE=${SSL_CERT_FILE:-$PIP_CERT}
    [ -x .venv/bin/python ] || {
        rm -rf .venv
        uv venv ${PYTHON:+--python "$PYTHON"} .venv
    }
    uv pip install --python .venv/bin/python --editable '.[dev]'
}

install_with_pip() {
    local python
    python=$(find_python) || python=$(install_python)
    .venv/bin/python -m pip --version >/dev/null 2>&1 || { # none yet, or one of uv's
        rm -rf .venv
        "$python" -m venv .venv
    }
    .venv/bin/python -m pip install --disable-pip-version-check --editable '.[dev]'
}

find_python() { # one that is new enough and can make environments
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

install_python() { # root on Debian and Ubuntu; everybody else is told
    if can_install && [ -z "${PYTHON:-}" ]; then
        apt_update >&2
        apt_install python3 python3-venv >&2
        find_python && return
    fi
    echo "Python 3.10 or newer with its venv module is needed; found: $(python3 --version 2>&1 || true)" >&2
    echo "try: sudo apt-get install python3-venv (Debian, Ubuntu), or install uv, or name another one: PYTHON=/path/to/python3 make ..." >&2
    exit 3
}

main
