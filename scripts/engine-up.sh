#!/usr/bin/env bash
# Make sure that a Docker engine answers. Leaves at once where one does; as root on Debian and Ubuntu installs and
# starts one; elsewhere says what to install and exits 3. Also installs mmdebstrap there, for images without a registry.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/apt.sh

SOCKET=/var/run/docker.sock
LOG=/var/log/dockerd.log
LOCK=/var/lock/repro-engine-up.lock
POLICY=/usr/sbin/policy-rc.d
POLICY_MARK="# repro engine-up: packages start nothing while they are installed"
daemon= # process id of the daemon that we started ourselves

main() {
    if answers; then
        bootstrap_tool
        echo "an engine answers at ${DOCKER_HOST:-the usual place}"
        return
    fi
    [ -z "${DOCKER_HOST:-}" ] || give_up "no engine answers at DOCKER_HOST=$DOCKER_HOST" \
        "start that engine, or unset DOCKER_HOST to use the one of this machine"
    [ ! -S "$SOCKET" ] || [ -w "$SOCKET" ] || give_up "$SOCKET is not yours to use" \
        "sudo usermod -aG docker \$USER, log in again, and repeat"
    if [ "$(uname -s)" != Linux ]; then
        give_up "no Docker engine answers" "start Docker Desktop, colima or OrbStack, and repeat"
    fi
    if [ "$(id -u)" != 0 ]; then
        give_up "no Docker engine answers" "$(advice)"
    fi
    exec 9>"$LOCK"
    flock 9 # one caller at a time; the others find an engine afterwards
    answers || bring_up
    bootstrap_tool
    echo "an engine answers at unix://$SOCKET"
}

answers() {
    local socket=$SOCKET
    case "${DOCKER_HOST:-}" in
        "" | unix://*) [ -z "${DOCKER_HOST:-}" ] || socket=${DOCKER_HOST#unix://} ;;
        *) socket= ;;
    esac
    if [ -n "$socket" ] && ping_socket "$socket"; then
        return 0
    fi
    # another kind of address, or a Docker context: the library knows all of them
    [ -x .venv/bin/python ] && .venv/bin/python -c 'from repro.engine import connect; connect(5)' 2>/dev/null
}

ping_socket() { # GET /_ping: needs no docker command
    [ -S "$1" ] || return 1
    if command -v curl >/dev/null; then
        [ "$(curl --silent --max-time 5 --noproxy '*' --unix-socket "$1" http://engine/_ping)" = OK ]
    else
        python3 - "$1" <<'PYTHON' 2>/dev/null
import socket, sys
with socket.socket(socket.AF_UNIX) as engine:
    engine.settimeout(5)
    engine.connect(sys.argv[1])
    engine.sendall(b"GET /_ping HTTP/1.0\r\nHost: engine\r\n\r\n")
    sys.exit(b" 200 " not in engine.recv(64))
PYTHON
    fi
}

give_up() { # what is wrong, what to do
    printf '%s\ntry: %s\n' "$1" "$2" >&2
    exit 3
}

advice() {
    if command -v dockerd >/dev/null; then
        echo "sudo systemctl start docker, and repeat"
    elif command -v apt-get >/dev/null; then
        echo "sudo scripts/engine-up.sh (it installs docker.io and starts it), then sudo usermod -aG docker \$USER"
    else
        echo "install Docker Engine (docs.docker.com/engine/install) or Podman with its socket, start it, and repeat"
    fi
}

bring_up() {
    command -v dockerd >/dev/null || {
        can_install || give_up "no Docker engine answers" "$(advice)"
        install_engine
    }
    if [ -d /run/systemd/system ]; then
        systemctl start docker
    else
        start_daemon
    fi
    wait_for_engine
}

install_engine() {
    echo "installing Docker Engine"
    [ -d /run/systemd/system ] || hold_services_back
    apt_update
    local packages=(docker.io iptables ca-certificates)
    if apt_knows docker-cli; then # Debian 13 and later: a package of its own
        packages+=(docker-cli)
    fi
    apt_install "${packages[@]}"
    let_services_go
}

hold_services_back() { # without systemd the package's own attempt to start the daemon fails, and with it the installation
    trap let_services_go EXIT
    if [ -e "$POLICY" ] && ! grep -qF "$POLICY_MARK" "$POLICY"; then
        mv "$POLICY" "$POLICY.before-repro"
    fi
    printf '#!/bin/sh\n%s\nexit 101\n' "$POLICY_MARK" >"$POLICY"
    chmod +x "$POLICY"
}

let_services_go() { # also after a failure; never a policy of somebody else
    if grep -qsF "$POLICY_MARK" "$POLICY"; then
        rm -f "$POLICY"
    fi
    if [ -e "$POLICY.before-repro" ]; then
        mv "$POLICY.before-repro" "$POLICY"
    fi
}

start_daemon() {
    if remove_if_stale /var/run/docker.pid dockerd; then
        remove_if_stale /var/run/docker/containerd/containerd.pid containerd || true
        echo "starting dockerd, log in $LOG"
        setsid dockerd -H "unix://$SOCKET" >>"$LOG" 2>&1 </dev/null 9>&- & # 9: the lock is not the daemon's to keep
        daemon=$!
    else
        echo "dockerd runs (process $(cat /var/run/docker.pid)); waiting for it to answer"
    fi
}

# remove_if_stale FILE PROGRAM: a daemon that was killed leaves its pid file, whose number may since be a zombie's or
# another program's; the next daemon would refuse to start. False: that program really runs.
remove_if_stale() {
    local pid
    [ -e "$1" ] || return 0
    pid=$(cat "$1")
    if [ -n "$pid" ] && [ "$(program_of "$pid")" = "$2" ]; then
        return 1
    fi
    rm -f "$1"
}

program_of() { # of a process in our own root; a zombie has no command line, one in a container has another root
    local program
    [ "$(readlink "/proc/$1/root" 2>/dev/null)" = / ] || return 0
    read -r -d '' program 2>/dev/null <"/proc/$1/cmdline" || true
    basename -- "${program:-}"
}

wait_for_engine() {
    local tenths
    for ((tenths = 0; tenths < 600; tenths += 2)); do
        ping_socket "$SOCKET" && return
        [ -z "$daemon" ] || kill -0 "$daemon" 2>/dev/null || break # it ended
        sleep 0.2
    done
    tail -n 20 "$LOG" >&2 2>/dev/null || true
    give_up "the engine was started and does not answer; the end of its log is above" \
        "read all of $LOG (journalctl -u docker where systemd runs)"
}

bootstrap_tool() { # lets the project make its own base image where no registry can be reached
    command -v mmdebstrap >/dev/null && return
    can_install || return 0
    echo "installing mmdebstrap"
    { apt_update && apt_install mmdebstrap debian-archive-keyring ca-certificates; } ||
        echo "mmdebstrap cannot be installed: the image variant 'debian' is not to be had here" >&2
}

[ "${BASH_SOURCE[0]}" != "$0" ] || main # sourced by its test
