"""Shell completion of `t2i`: `eval "$(t2i --completion bash)"`.

The script knows the commands. It asks Hydra for settings and options, as Hydra's own completion does, and reads a
command's flags from its --help.
"""

from t2i.cli.commands import COMMANDS
from t2i.config import ConfigError

FLAGS = "grep -oE '(^|[ ,[])--[a-z-]+' | tr -d ' ,[' | sort -u"  # those in a --help

BASH = r"""
_t2i() {
    local line="${COMP_LINE:0:COMP_POINT}" command="${COMP_WORDS[1]}" help=--help choices choice
    local word="${line##*[[:space:]]}"
    [[ $command == train ]] && help=--hydra-help
    if ((COMP_CWORD == 1)); then
        choices="@COMMANDS@"
    elif [[ $word == -* ]]; then
        choices="$("${COMP_WORDS[0]}" "$command" $help 2>/dev/null | @FLAGS@)"
    else
        case "$command" in
        @OVERRIDES@)
            line="t2i-train ${line#*[[:space:]]"$command"}"
            choices="$(COMP_LINE="$line" "${COMP_WORDS[0]}" train -sc query=fish 2>/dev/null)"
            ;;
        esac
    fi
    local before="${word%"${word##*[=:]}"}"  # bash replaces only what follows the last = or :
    COMPREPLY=()
    while IFS= read -r choice; do
        [[ -n $choice && $choice == "$word"* ]] && COMPREPLY+=("${choice#"$before"}")
    done <<<"$choices"
    [[ ${COMPREPLY[*]} == *[=./] ]] && compopt -o nospace
    return 0
}
complete -o default -F _t2i t2i
"""

ZSH = r"""
#compdef t2i
_t2i() {
    local command="${words[2]}" help=--help
    local -a choices
    [[ $command == train ]] && help=--hydra-help
    if ((CURRENT == 2)); then
        choices=(
@SUMMARIES@
        )
        _describe command choices
    elif [[ ${words[CURRENT]} == -* ]]; then
        choices=(${(f)"$("${words[1]}" "$command" $help 2>/dev/null | @FLAGS@)"})
        compadd -a choices
    else
        case "$command" in
        @OVERRIDES@)
            local line="t2i-train ${(j: :)words[3,CURRENT]}"
            choices=(${(f)"$(COMP_LINE="$line" "${words[1]}" train -sc query=fish 2>/dev/null)"})
            compadd -S '' -a choices
            ;;
        *) _files ;;
        esac
    fi
}
compdef _t2i t2i
"""

FISH = r"""
function _t2i_choices
    set -l words (commandline -opc)
    set -l word (commandline -ct)
    set -l help --help
    test "$words[2]" = train; and set help --hydra-help
    if string match -q -- '-*' $word
        $words[1] $words[2] $help 2>/dev/null | @FLAGS@
    else if contains -- $words[2] @OVERRIDES@
        set -lx COMP_LINE "t2i-train $words[3..-1] $word"
        $words[1] train -sc query=fish 2>/dev/null
    else
        __fish_complete_path $word
    end
end
complete -c t2i -f -n 'test (count (commandline -opc)) -gt 1' -a '(_t2i_choices)'
@SUMMARIES@
"""


def script(shell: str = "") -> str:
    """The completion script for a shell."""
    summaries = {name: command.summary.replace("'", "") for name, command in COMMANDS.items()}
    match shell:
        case "bash":
            template, separator, lines = BASH, " | ", []
        case "zsh":
            template, separator = ZSH, " | "
            lines = [f"            '{name}:{summary}'" for name, summary in summaries.items()]
        case "fish":
            template, separator = FISH, " "
            first = "complete -c t2i -f -n 'test (count (commandline -opc)) -eq 1'"
            lines = [f"{first} -a {name} -d '{summary}'" for name, summary in summaries.items()]
        case _:
            raise ConfigError(f"--completion {shell or 'SHELL'}: choose from bash, zsh, fish")
    with_overrides = [name for name, command in COMMANDS.items() if command.takes_overrides]
    values = {"FLAGS": FLAGS, "COMMANDS": "\n".join(COMMANDS), "SUMMARIES": "\n".join(lines)}
    values["OVERRIDES"] = separator.join(with_overrides)
    for name, value in values.items():
        template = template.replace(f"@{name}@", value)
    return template.strip()
