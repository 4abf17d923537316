"""The rows say the same everywhere: on the command line, in --help, in docs/REFERENCE.md."""

from __future__ import annotations

import re

import pytest

from krunclient import cli, options
from krunclient.errors import UsageError
from krunclient.model import Rlimit
from krunclient.options import OPTIONS
from tests.framework.paths import TOP
from tests.framework.stages import settings

REFERENCE = (TOP / "docs/REFERENCE.md").read_text()
# What needs a host: a user to become, or a variable to pass.
SAMPLES = {
    "--user": None,
    "--env": "A=b",
    "--volume": "/a:/b",
    "--rlimit": "core=0:1",
    "--exec": "/b",
    "--libkrun": "/b",
    "--libkrunfw": "/b",
    "--passt": "/b",
    "--ready-timeout": "5",
    "--overlay": "/o",
    "--state-dir": "/o",
    "--metrics": "/o",
    "--health-path": "/up",
    "--cpu-quota": "50",
    "--memory-max": "600",
    "--pids-max": "100",
}
# What an option is of use with alone.
WITH_A_PATH = ("--health-interval", "--health-timeout", "--health-retries", "--health-action")
COMPANIONS = dict.fromkeys(WITH_A_PATH, "--health-path=/")


def documented() -> dict[str, tuple[str, str]]:
    """What the document's table says of each option: how its value is called, and its default."""
    table = REFERENCE.partition("| option | default | meaning |")[2].partition("\n\n")[0]
    found: dict[str, tuple[str, str]] = {}
    for line in table.splitlines()[2:]:
        names, default, _ = (
            cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:4]
        )
        for name, metavar in re.findall(r"`(--[\w-]+) ?([^`]*)`", names):
            metavar, default = metavar.replace("NAME`, `--env ", ""), default.replace("`", "")
            found.setdefault(name, (metavar, default))
    return found


def test_the_document_has_each_option_with_its_value_and_default_in_the_same_order() -> None:
    assert list(documented()) == [option.name for option in OPTIONS]
    for option in OPTIONS:
        metavar, default = documented()[option.name]
        assert metavar == option.metavar.replace("[=VALUE]", "")
        assert default == options.default_text(option)


def test_help_has_each_option_with_its_value_and_default() -> None:
    lines = {line.split()[0]: line for line in cli.help_text().splitlines() if "  --" in line}
    assert list(lines) == [option.name for option in OPTIONS]
    for option in OPTIONS:
        assert option.metavar in lines[option.name]
        if option.metavar and options.default_text(option):
            assert lines[option.name].endswith(f"({options.default_text(option)})")


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_each_default_is_a_value_that_can_be_given(option: options.Option[object]) -> None:
    text = SAMPLES.get(option.name, options.default_text(option))
    if option.action or text is None:
        return
    if option.metavar:
        settings(f"{option.name}={text}", COMPANIONS.get(option.name, "--cpus=1"))
    else:
        settings(option.name)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_what_needs_the_sandbox_is_refused_without_and_no_other(
    option: options.Option[object],
) -> None:
    text = SAMPLES.get(option.name, options.default_text(option))
    if option.action or text is None or option is options.SANDBOX:
        return
    value = [text] if option.metavar else []
    words = [option.name, *value, COMPANIONS.get(option.name, "--cpus=1")]
    if option.needs_sandbox:
        with pytest.raises(UsageError, match="it is the sandbox that keeps it"):
            settings(*words, "--sandbox=off")
    else:
        assert not settings(*words, "--sandbox=off").sandbox


def test_only_actions_cant_be_set_in_the_environment() -> None:
    names = [option.name for option in OPTIONS if option.action]
    assert names == ["--plan", "--check", "--list", "--version", "--help"]


@pytest.mark.parametrize("name", ["KRUN_INIT", "HOSTNAME"])
def test_a_variable_that_inits_take_for_a_setting_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="as settings of its own"):
        settings(f"--env={name}=x")
    with pytest.raises(UsageError, match="as settings of its own"):
        settings("--env", name, env={name.encode(): b"x"})
    settings(f"--env=MY_{name}=x")


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("nofile=1024:4096", Rlimit(name="RLIMIT_NOFILE", soft=1024, hard=4096)),
        ("nofile=1048576:1048576", Rlimit(name="RLIMIT_NOFILE", soft=2**20, hard=2**20)),
        ("core=0:unlimited", Rlimit(name="RLIMIT_CORE", soft=0, hard=2**64 - 1)),
    ],
)
def test_a_limit_is_a_name_and_two_numbers(text: str, limit: Rlimit) -> None:
    assert limit in settings(f"--rlimit={text}").guest.rlimits


@pytest.mark.parametrize(
    "text",
    [
        *("", "nofile", "nofile=1", "nofile=:", "nofile=1:", "nofile=:1", "=1:2", "files=1:2"),
        *("NOFILE=1:2", "nofile=2:1", "nofile=1:1048577", "nofile=1:unlimited", "nofile=-1:2"),
        *(
            "core=:",
            "core=-1:-1",
            "n\u0131ce=1:2",
            "\u017ftack=1:2",
            "core=unlimited:1",
            "core=1:18446744073709551616",
            "core=1:2:3",
            "core=1,2:3",
        ),
    ],
)
def test_any_other_limit_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="--rlimit"):
        settings(f"--rlimit={text}")
