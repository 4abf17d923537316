"""argv and environment become Options, or a UsageError that says which word is wrong."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krunclient import cli
from krunclient.errors import UsageError
from krunclient.options import BY_NAME, CONSOLE, EXEC, HELP, OPTIONS, VERSION
from krunclient.secret import Secret

WORDS = st.lists(st.binary(max_size=20).filter(lambda word: b"\0" not in word), max_size=8)
OPTION_WORDS = st.sampled_from(
    [name.encode() for name in BY_NAME] + [b"--", b"-", b"--memory=5", b"--env=A=B"]
)
VARIABLES = st.dictionaries(
    st.one_of(
        st.sampled_from([option.variable.encode() for option in OPTIONS]),
        st.binary(min_size=1, max_size=20).filter(lambda name: b"=" not in name),
    ),
    st.binary(max_size=20),
    max_size=5,
)


def parse(*argv: str, **environ: str) -> cli.Options:
    return cli.parse(
        [word.encode() for word in argv],
        {name.encode(): value.encode() for name, value in environ.items()},
    )


def texts(options: cli.Options, name: str) -> tuple[str, ...]:
    return tuple(text.reveal() for text in options.given[name].texts)


@given(st.lists(st.one_of(OPTION_WORDS, st.binary(max_size=10)), max_size=10), VARIABLES)
def test_any_words_and_variables_give_options_or_a_usage_error(
    argv: list[bytes], environ: dict[bytes, bytes]
) -> None:
    with contextlib.suppress(UsageError):
        options = cli.parse(argv, environ)
        assert all(given.texts for given in options.given.values())


@given(WORDS)
def test_what_follows_two_dashes_is_the_apps_and_unchanged(words: list[bytes]) -> None:
    options = cli.parse([b"/root", b"80", b"--", *words], {})
    assert options.arguments == ("/root", "80")
    assert [word.encode("utf-8", "surrogateescape") for word in options.app_arguments] == words


def test_options_and_arguments_come_in_any_order() -> None:
    options = parse("--memory", "5", "root", "--console", "80", "--cpus=2")
    assert options.arguments == ("root", "80")
    assert texts(options, "--memory") == ("5",)
    assert texts(options, "--cpus") == ("2",)
    assert options.has(CONSOLE)


def test_the_last_of_an_option_wins_and_a_repeatable_one_collects() -> None:
    options = parse("--memory=1", "--memory=2", "--env=A=1", "--env", "B=2")
    assert texts(options, "--memory") == ("2",)
    assert texts(options, "--env") == ("A=1", "B=2")


def test_the_environment_sets_options_and_the_command_line_wins() -> None:
    options = parse(
        "--memory=2",
        KRUNCLIENT_MEMORY="1",
        KRUNCLIENT_CPUS="3",
        KRUNCLIENT_ENV="A=1\nB=\u2028",
        KRUNCLIENT_CONSOLE="1",
        KRUNCLIENT_EXEC="",
    )
    assert options.given["--memory"] == cli.Given(source="--memory", texts=(Secret("2"),))
    assert options.given["--cpus"] == cli.Given(source="KRUNCLIENT_CPUS", texts=(Secret("3"),))
    assert texts(options, "--env") == ("A=1", "B=\u2028")
    assert options.has(CONSOLE)
    assert not options.has(EXEC)


def test_a_flag_in_the_environment_can_be_off() -> None:
    assert not parse(KRUNCLIENT_CONSOLE="0").has(CONSOLE)


@pytest.mark.parametrize(
    ("argv", "environ", "thing"),
    [
        (["--nope"], {}, "--nope"),
        (["--nope=hidden"], {}, "--nope"),
        (["-m"], {}, "-m"),
        (["--memory"], {}, "--memory"),
        (["--console=1"], {}, "--console"),
        ([], {"KRUNCLIENT_MEMROY": "hidden"}, "KRUNCLIENT_MEMROY"),
        ([], {"KRUNCLIENT_PLAN": "1"}, "KRUNCLIENT_PLAN"),
        ([], {"KRUNCLIENT_CONSOLE": "hidden"}, "KRUNCLIENT_CONSOLE"),
    ],
)
def test_a_word_that_cant_be_read_is_named_without_its_value(
    argv: list[str], environ: dict[str, str], thing: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse(*argv, **environ)
    assert caught.value.thing == thing
    assert "hidden" not in str(caught.value)


def test_help_names_every_option() -> None:
    text = cli.help_text()
    assert all(option.name in text for option in OPTIONS)
    assert max(len(line) for line in text.splitlines()) <= 100


@pytest.mark.parametrize("word", ["--help", "-h", "--version"])
def test_help_is_given_whatever_else_is_wrong_in_the_environment(word: str) -> None:
    assert parse(word, KRUNCLIENT_MEMROY="1").has(VERSION if word == "--version" else HELP)


def test_no_value_shows_itself_before_it_has_been_read() -> None:
    options = parse(
        "--env=A=hidden", "--libkrun=hidden", INTERNAL_SECRET="hidden", KRUNCLIENT_ENV="B=hidden"
    )
    for shown in (repr(options), repr(options.given), repr(options.environment)):
        assert "hidden" not in shown
