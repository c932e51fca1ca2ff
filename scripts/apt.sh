# shellcheck shell=bash
# Sourced by the other scripts: packages of Debian and Ubuntu, for root.

can_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

apt_update() {
    local attempt
    for attempt in 1 2 3; do # the lists have a lock of their own, for which apt does not wait
        apt-get -o DPkg::Lock::Timeout=300 update && return
        echo "apt-get update failed (attempt $attempt of 3)" >&2
        sleep 5
    done
    return 1
}

apt_knows() { apt-cache show --no-all-versions "$1" >/dev/null 2>&1; }

apt_install() { # after apt_update
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@"
}
