"""The rows say the same everywhere: on the command line, in --help, in the README."""

from __future__ import annotations

import re

import pytest

from krunclient import cli, options
from krunclient.errors import UsageError
from krunclient.options import OPTIONS
from tests.framework.paths import TOP
from tests.framework.stages import settings

README = (TOP / "README.md").read_text()
# What needs a host: a user to become, or a variable to pass.
SAMPLES = {
    "--user": None,
    "--env": "A=b",
    "--volume": "/a:/b",
    "--exec": "/b",
    "--libkrun": "/b",
    "--libkrunfw": "/b",
    "--ready-timeout": "5",
    "--overlay": "/o",
    "--state-dir": "/o",
}


def documented() -> dict[str, tuple[str, str]]:
    """What the README's table says of each option: how its value is called, and its default."""
    table = README.partition("| option | default | meaning |")[2].partition("\n\n")[0]
    found: dict[str, tuple[str, str]] = {}
    for line in table.splitlines()[2:]:
        names, default, _ = (
            cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:4]
        )
        for name, metavar in re.findall(r"`(--[\w-]+) ?([^`]*)`", names):
            metavar, default = metavar.replace("NAME`, `--env ", ""), default.replace("`", "")
            found.setdefault(name, (metavar, default))
    return found


def test_the_readme_has_each_option_with_its_value_and_default_in_the_same_order() -> None:
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
        settings(f"{option.name}={text}")
    else:
        settings(option.name)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_what_needs_the_sandbox_is_refused_without_and_no_other(
    option: options.Option[object],
) -> None:
    text = SAMPLES.get(option.name, options.default_text(option))
    if option.action or text is None or option is options.SANDBOX:
        return
    words = (option.name, text) if option.metavar else (option.name,)
    if option.needs_sandbox:
        with pytest.raises(UsageError, match="it is the sandbox that keeps it"):
            settings(*words, "--sandbox=off")
    else:
        assert not settings(*words, "--sandbox=off").sandbox


def test_only_actions_cant_be_set_in_the_environment() -> None:
    names = [option.name for option in OPTIONS if option.action]
    assert names == ["--plan", "--check", "--version", "--help"]


@pytest.mark.parametrize("name", ["KRUN_INIT", "HOSTNAME"])
def test_a_variable_that_inits_take_for_a_setting_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="as settings of its own"):
        settings(f"--env={name}=x")
    with pytest.raises(UsageError, match="as settings of its own"):
        settings("--env", name, env={name.encode(): b"x"})
    settings(f"--env=MY_{name}=x")
