# shellcheck shell=bash
# Sourced by the other scripts: numbered steps with their times.
set -o pipefail # a step's status is its command's, behind the pipe that shows its output

now() {
    local time=${EPOCHREALTIME:-$(date +%s)} # bash before 5.0 knows whole seconds only
    printf '%s' "${time/,/.}"                # some locales write a comma
}

since() { awk -v from="$1" -v to="$(now)" 'BEGIN { printf "%.1f s", to - from }'; }

# step NUMBER/TOTAL NAME COMMAND...: the command's last line is its answer and ends up beside the name; everything else
# is shown only when it fails, or with V=1. On a terminal the latest line is shown while it works.
step() {
    local title="[$1] $2" begun log status=0
    shift 2
    begun=$(now)
    if [ -n "${V:-}" ]; then
        printf '%s …\n' "$title"
        "$@" || status=$?
        printf '%s · %s\n' "$title" "$(since "$begun")"
        return "$status"
    fi
    log=$(mktemp)
    [ -t 1 ] || printf '%s …\n' "$title"
    "$@" 2>&1 </dev/null | follow "$title" "$log" || status=$?
    if [ "$status" = 0 ]; then
        printf '%s: %s · %s\n' "$title" "$(tail -n 1 "$log")" "$(since "$begun")"
    else
        printf '%s: failed · %s\n' "$title" "$(since "$begun")"
        sed 's/^/  | /' "$log" >&2
    fi
    rm -f "$log"
    return "$status"
}

# show NUMBER/TOTAL NAME COMMAND...: a step whose output is for the user's eyes.
show() {
    local title="[$1] $2" begun status=0
    shift 2
    begun=$(now)
    printf '%s …\n' "$title"
    "$@" || status=$?
    printf '%s · %s\n' "$title" "$(since "$begun")"
    return "$status"
}

follow() { # keep stdin in the file $2; on a terminal, show its latest line after the title
    local line
    while IFS= read -r line || [ -n "$line" ]; do
        printf '%s\n' "$line" >>"$2"
        [ -t 1 ] && printf '\r\033[K%s … %.*s' "$1" $((${COLUMNS:-80} - ${#1} - 5)) "$line"
    done
    [ -t 1 ] && printf '\r\033[K'
    return 0
}
