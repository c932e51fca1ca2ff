say() { printf '%s\n' "$*" >&2; }
lost() { say "reproduce.sh: $*"; exit 3; }

# The files whose lines in a list of sha256sum's do not fit them, as sha256sum tells.
odd() { # OUTPUT OF sha256sum -c
    while IFS= read -r line; do
        case $line in *': OK' | '' | 'sha256sum: '*) ;; *) say "  | $line" ;; esac
    done <<END
$1
END
}

# A file of the image in the form in which an engine takes them: a tar's header, the content, and what fills its block.
entry() { # NAME SIZE THE-SAME-AS-A-FIELD CHECKSUM
    printf '%s' "$1"
    head -c $((100 - ${#1})) /dev/zero
    printf '0000644\0000000000\0000000000\000%b00000000000\000%s\000 0' "$3" "$4"
    head -c 100 /dev/zero
    printf 'ustar\00000'
    head -c 247 /dev/zero
    cat "image/$1"
    head -c $(((512 - $2 % 512) % 512)) /dev/zero
}

layers_of() { "$engine" image inspect --format '{{range .RootFS.Layers}}{{.}} {{end}}' "$1" 2>/dev/null || :; }

# One line for each file of a list; $differ counts those that are not the same. What is not said to be the same is not.
compared() { # LIST WHAT-A-DIFFERENCE-MEANS
    [ -s "expected/$1" ] || return 0
    wanted=0 told=0
    while IFS= read -r line; do wanted=$((wanted + 1)); done <"expected/$1"
    found=$(cd "$out/outputs" && sha256sum -c "$here/expected/$1" 2>/dev/null) || :
    while IFS= read -r line; do
        case $line in
        *': OK') printf 'same bytes  %s\n' "${line%: OK}" ;;
        *': FAILED open or read') printf 'missing     %s\n' "${line%: FAILED open or read}" && differ=$((differ + 1)) ;;
        *': FAILED') printf 'differs     %s%s\n' "${line%: FAILED}" "$2" && differ=$((differ + 1)) ;;
        *) continue ;;
        esac
        told=$((told + 1))
    done <<END
$found
END
    [ "$told" = "$wanted" ] || lost "sha256sum compared $told of the $wanted files in expected/$1, which shows nothing"
    lines=$((lines + wanted))
}

unset CDPATH
export LC_ALL=C
called_in=$(pwd)
cd "$(dirname "$0")" || exit 3
here=$(pwd -P)
case ${1:-} in
-*) say "usage: sh reproduce.sh [NEW FOLDER FOR THE OUTPUTS]" && exit 2 ;;
'') out=$here/reproduced ;;
/*) out=$1 ;;
*) out=$called_in/$1 ;;
esac
case $here$out in *,*) say "reproduce.sh: an engine takes no folder with a comma in its path: $here, $out" && exit 2 ;; esac
[ ! -e "$out" ] || { say "reproduce.sh: $out is there already: name another folder, or remove it" && exit 2; }
if [ -n "$secrets_needed" ] && [ ! -d "${SECRETS:-}" ]; then
    say "reproduce.sh: this run was given secrets, which are not in the bundle: $secrets_needed"
    say "  try  lay each into a file of its name, and set SECRETS to the absolute path of their folder"
    exit 2
fi

engine=${DOCKER:-}
for each in docker podman; do
    [ -n "$engine" ] || ! command -v "$each" >/dev/null || engine=$each
done
[ -n "$engine" ] || lost "neither docker nor podman is on PATH"
said=$("$engine" info 2>&1) || lost "$engine does not answer: $said"

[ -n "$exit_code" ] || [ -s expected/results-sha256.txt ] || [ -s expected/by-meaning-sha256.txt ] ||
    lost "nobody knows how this run ended, and it left no results: there is nothing to compare"

say "checking the files of the bundle"
checked=$(sha256sum -c manifest-sha256.txt 2>&1) || { odd "$checked" && lost "files of this bundle are not as they were written"; }
for each in $data; do
    [ -d "data/$each" ] || lost "the dataset $each is not in this bundle: fetch.txt says where its files are from"
done

if [ -z "$layers" ] || [ "$(layers_of "$image_name")" != "$layers" ]; then
    [ -d image ] || lost "the image is not in this bundle, and not on this engine: fetch.txt says where it is from"
    say "loading the image $image_name"
    before=$("$engine" image inspect --format '{{.Id}}' "$image_name" 2>/dev/null) || :
    [ -z "$before" ] || say "note: $image_name was another image here, which stays as $before"
    said=$(archive | "$engine" load 2>&1) || lost "the image could not be loaded: $said"
    [ "$(layers_of "$image_name")" = "$layers" ] || lost "$engine holds something else as $image_name than the bundle does"
fi
image=$("$engine" image inspect --format '{{.Id}}' "$image_name")

user=$(id -u):$(id -g)
# the root of a rootless engine is whoever runs it
case $("$engine" info --format '{{.SecurityOptions}}' 2>/dev/null) in *rootless*) user=0:0 ;; esac
case $("$engine" info --format '{{.Host.Security.Rootless}}' 2>/dev/null) in true) user=0:0 ;; esac
[ -z "$as_root" ] || user=0:0
mkdir -p "$out/outputs" "$out/journal" || exit 3
out=$(cd "$out" && pwd -P)
restore_code
set --
for each in $data; do
    set -- "$@" --mount "type=bind,source=$here/data/$each,target=/data/$each,readonly"
done
[ -z "$secrets_needed" ] || set -- "$@" --mount "type=bind,source=$SECRETS,target=$secrets_folder,readonly"
set -- "$@" --mount "type=bind,source=$here/code,target=/workspace,readonly"
set -- "$@" --mount "type=bind,source=$here/config.json,target=/repro/config.json,readonly"
set -- "$@" --mount "type=bind,source=$here/inside,target=/repro/inside,readonly"
set -- "$@" --mount "type=bind,source=$out/outputs,target=/outputs"
set -- "$@" --mount "type=bind,source=$out/journal,target=/journal"

say "running; what it prints goes to $out/output.log"
code=0
start --user "$user" "$@" >"$out/output.log" 2>&1 || code=$?
if [ "$code" = 125 ] && [ "$exit_code" != 125 ]; then
    cat "$out/output.log" >&2
    lost "the container could not be started"
fi

differ=0 lines=0
if [ -n "$exit_code" ] && [ "$code" != "$exit_code" ]; then
    printf 'exit code   %s, and it was %s\n' "$code" "$exit_code"
    differ=1
    tail -n 5 "$out/output.log"
fi
compared results-sha256.txt ''
compared by-meaning-sha256.txt ' (in bytes; repro compares files of this kind by their meaning)'
results=$lines wrong=$differ
compared by-products-sha256.txt ' (a by-product, which may differ)'
if [ "$wrong" = 0 ]; then
    printf 'REPRODUCED  %s: %s%s result files, byte for byte\n' "$run" "${exit_code:+the exit code and }" "$results"
    exit 0
fi
[ -z "$exit_code" ] || results=$((results + 1))
printf 'DIFFERS     %s: %s of %s results\n' "$run" "$wrong" "$results"
exit 1
