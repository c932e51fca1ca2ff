# Completion of `repro` for bash: eval "$(repro run -sc install=bash)"; Hydra knows the words behind run, rebuild, shell.
_repro()
{
    local word=${COMP_LINE:0:COMP_POINT} found
    local line=$word
    word=${word##* }
    if [ "$COMP_CWORD" = 1 ]; then
        found="run rebuild export-image import-image images pin prune shell runs show lock sync ui doctor init"
        found+=" logs attach wait stop rm reap diff reproduce verify attest push pull"
    else
        case ${COMP_WORDS[1]} in
        run | rebuild | lock | shell | export-image)
            found=$(COMP_LINE="repro ${line#* "${COMP_WORDS[1]}" }" COMP_POINT=0 "${COMP_WORDS[0]}" run -sc query=bash 2>/dev/null)
            ;;
        show | logs | attach | wait | stop | rm | sync | ui | diff | reproduce | verify | attest | push)
            found="latest $("${COMP_WORDS[0]}" runs 2>/dev/null | sed -n '2,$ s/ .*//p')"
            ;;
        esac
    fi
    mapfile -t COMPREPLY < <(compgen -W "$found" -- "$word")
    if [[ $COMP_WORDBREAKS == *=* && $word == *=* ]]; then # bash completes only what is behind the sign
        COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*=}"}"}")
    fi
}
complete -o nospace -o default -F _repro repro
