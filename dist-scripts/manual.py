"""Write krunclient(1) and bash's completion into build/manual, from the rows of the options.

Run by `nox -s manual`. What docs/REFERENCE.md has in tables is taken from there.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterator
from pathlib import Path

from krunclient import __version__, options
from krunclient.cli import USAGE
from krunclient.log import FORMATS, LEVELS
from krunclient.options import ENVIRONMENT_PREFIX, OPTIONS, Option

TOP = Path(__file__).resolve().parent.parent
MANUAL = TOP / "build/manual"

DESCRIPTION = """\
boots one libkrun microVM for one application. ROOT_PATH is a directory that holds the guest's root
file system, with a program at /bin/app. The guest's port 80 appears on LOCAL_PORT of the host; HOST
and INTERNAL_SECRET of the environment reach the program, and its standard output and error are
krunclient's. What follows -- are the program's arguments.

ROOT_PATH is never changed: what the guest writes is in memory and gone at the end, unless
--overlay, --state-dir or --volume says where it is to stay. The guest connects to what --allow
names, and to nothing else. The VMM, which the guest may take over, is confined.

SIGTERM, SIGINT, SIGHUP and SIGQUIT ask the program to stop: it gets SIGINT, has the grace period,
and then the VM is ended. A second signal ends it at once."""

EXAMPLES = (
    ("Boot an app, and see its answer:", "krunclient app 8080 &\ncurl http://127.0.0.1:8080/"),
    (
        "Keep what it writes, and ask it whether it is well:",
        "krunclient --state-dir /var/lib/apps --health-path /api/status app 8080",
    ),
    ("Does this host run microVMs? What runs?", "krunclient --check\nkrunclient --list"),
)

COMPLETION = """\
# bash completion for krunclient, made from its options
_krunclient() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} words= word files=
    COMPREPLY=()
    # what comes after -- is the app's own
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do [[ $word == -- ]] && return; done
    # bash takes an equals sign for a word of its own
    if [[ $current == = ]]; then current=; else
        [[ $previous == = ]] && previous=${COMP_WORDS[COMP_CWORD-2]}
    fi
    case $previous in
CASES
        *) case $current in
            -*) words='OPTIONS' ;;
            *) files=-d ;;
        esac ;;
    esac
    if [[ $files ]]; then
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen $files -- "$current")
    else
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
    fi
}
complete -F _krunclient krunclient
"""
# Paths of the guest's, or of a URL.
NO_FILES = (options.EXEC.name, options.HEALTH_PATH.name)


def main() -> None:
    MANUAL.mkdir(parents=True, exist_ok=True)
    (MANUAL / "krunclient.1").write_text("\n".join(man_page()) + "\n")
    (MANUAL / "krunclient.bash").write_text(completion())
    for path in sorted(MANUAL.iterdir()):
        print(path.relative_to(TOP))


def man_page() -> Iterator[str]:
    """Lines in the language of man(7)."""
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH", (TOP / "CHANGELOG.md").stat().st_mtime))
    day = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).date()
    yield f'.TH KRUNCLIENT 1 "{day}" "krunclient {__version__}" "User Commands"'
    yield from (".SH NAME", r"krunclient \- boot one libkrun microVM for one application")
    yield ".SH SYNOPSIS"
    name, rest = USAGE.split(" ", 1)
    yield from (f".B {name}", escaped(rest))
    for option in OPTIONS:
        if option.action:
            needed = f" {escaped(rest)}" if option is options.PLAN else ""
            yield from (".br", f".B {name} {escaped(option.name)}{needed}")
    yield ".SH DESCRIPTION"
    first, *others = DESCRIPTION.split("\n\n")
    yield from (".B krunclient", escaped(first))
    for paragraph in others:
        yield from (".PP", escaped(paragraph))
    yield ".SH OPTIONS"
    for option in OPTIONS:
        value = f" \\fI{escaped(option.metavar)}\\fR" if option.metavar else ""
        default = options.default_text(option) if option.metavar else ""
        yield from (".TP", f"\\fB{escaped(option.name)}\\fR{value}")
        more = "; may be given more than once" if option.repeatable else ""
        yield escaped(f"{option.help}{f' ({default})' if default else ''}{more}")
    yield ".SH ENVIRONMENT"
    yield escaped(
        f"Each option of a launch can be set as {ENVIRONMENT_PREFIX} and its name,"
        f" {options.MEMORY.variable}=1024 say; a flag by 1; a repeatable option by one value a"
        " line. The command line wins. A variable of that prefix that is no option is an error."
    )
    yield from (".TP", r"\fBHOST\fR, \fBINTERNAL_SECRET\fR", "reach the app.")
    yield from (".TP", r"\fBNOTIFY_SOCKET\fR", "is told of readiness and of a stop, sd_notify(3).")
    yield from (".TP", r"\fBXDG_CACHE_HOME\fR", "has the directory that the code is extracted to.")
    yield ".SH EXIT STATUS"
    for status, when in table("| status | when |"):
        yield from (".TP", f"\\fB{escaped(status)}\\fR", escaped(when))
    yield ".SH EXAMPLES"
    for number, (what, commands) in enumerate(EXAMPLES):
        yield from (
            *([".PP"] if number else []),
            escaped(what),
            ".PP",
            ".nf",
            ".RS",
            escaped(commands),
            ".RE",
            ".fi",
        )
    yield from (".SH SEE ALSO", "passt(1), systemd.service(5), cgroups(7), landlock(7)")


def table(head: str) -> Iterator[tuple[str, ...]]:
    """The rows of a table of docs/REFERENCE.md, without the marks of its language."""
    text = (TOP / "docs/REFERENCE.md").read_text().partition(head)[2].partition("\n\n")[0]
    for line in text.splitlines()[2:]:
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line.replace("`", ""))
        yield tuple(cell.strip() for cell in plain.strip("|").split("|"))


def escaped(text: str) -> str:
    """As roff takes it: a hyphen that can be typed, and no line that begins a request."""
    plain = text.replace("\\", r"\e").replace("-", r"\-")
    return "\n".join(f"\\&{line}" if line[:1] in (".", "'") else line for line in plain.split("\n"))


def completion() -> str:
    cases = []
    for option in OPTIONS:
        words = choices(option)
        if words:
            cases.append(f"        {option.name}) words='{' '.join(words)}' ;;")
        elif option.name not in NO_FILES and re.search("PATH|DIR", option.metavar):
            cases.append(f"        {option.name}) files=-f ;;")
        elif option.metavar:
            cases.append(f"        {option.name}) return ;;")
    names = " ".join(option.name for option in OPTIONS)
    return COMPLETION.replace("CASES", "\n".join(cases)).replace("OPTIONS", names)


def choices(option: Option[object]) -> list[str]:
    """Those that its metavar names, `tsi|passt`, or its help."""
    known = {options.LOG_LEVEL.name: LEVELS, options.LOG_FORMAT.name: FORMATS}
    if option.name in known:
        return list(known[option.name])
    return option.metavar.split("|") if "|" in option.metavar else []


if __name__ == "__main__":
    main()
