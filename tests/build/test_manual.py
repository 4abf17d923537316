"""The manual page and bash's completion are made from the options, and show all of them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import debian
import manual
from krunclient import options
from krunclient.options import OPTIONS


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("manual") / "krunclient.1"
    path.write_text("\n".join(manual.man_page()) + "\n")
    return path


@pytest.fixture(scope="module")
def mandoc() -> Path:
    return debian.unpack("mandoc") / "usr/bin/mandoc"


def test_the_page_has_nothing_to_warn_of(mandoc: Path, page: Path) -> None:
    found = subprocess.run([mandoc, "-Tlint", "-Wwarning", page], capture_output=True, text=True)
    assert (found.stdout, found.returncode) == ("", 0)


def test_the_page_shows_each_option_with_its_default_and_each_status(
    mandoc: Path, page: Path
) -> None:
    command: list[str | Path] = [mandoc, "-Tutf8", "-Owidth=200", page]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # What is bold is struck twice, and what is underlined over a line.
    plain = " ".join(re.sub(".\b", "", shown).split())
    for option in OPTIONS:
        assert f"{option.name} {option.metavar}".rstrip() in plain, option.name
        if option.metavar and options.default_text(option):
            assert f"({options.default_text(option)})" in plain
    for status in ("64", "66", "69", "70", "75", "77", "125, 126, 127", "128+N"):
        assert f" {status} " in plain
    assert "`" not in plain
    assert "krunclient --plan [OPTIONS] ROOT_PATH LOCAL_PORT" in plain
    assert "krunclient --check krunclient" in plain  # which needs neither


def completed(tmp_path: Path, *words: str) -> list[str]:
    """What bash offers for the last of these words."""
    (tmp_path / "completion").write_text(manual.completion())
    script = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _krunclient 2>/dev/null;'
        ' printf "%s\\n" "${COMPREPLY[@]}"'
    )
    command: list[str | Path] = [
        "bash",
        "-c",
        script,
        "bash",
        tmp_path / "completion",
        "krunclient",
        *words,
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    return found.stdout.splitlines() if found.stdout.strip() else []


def test_the_shell_completes_options_choices_and_files(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "file").touch()
    assert completed(tmp_path, "--") == [option.name for option in OPTIONS]
    assert completed(tmp_path, "--mem") == ["--memory", "--memory-max"]
    assert completed(tmp_path, "--network", "") == ["tsi", "passt"]
    assert completed(tmp_path, "--network", "=", "p") == ["passt"]
    assert completed(tmp_path, "--log-level", "w") == ["warning"]
    assert completed(tmp_path, "--health-action", "=") == ["none", "exit"]
    assert sorted(completed(tmp_path, "--metrics", "")) == ["completion", "file", "root"]
    assert completed(tmp_path, "--memory", "") == []
    assert completed(tmp_path, "--exec", "") == completed(tmp_path, "--health-path", "") == []
    assert completed(tmp_path, "root", "80", "--", "--log-level", "w") == []
    assert completed(tmp_path, "") == ["root"]
    (tmp_path / "root").rename(tmp_path / "a b")
    assert completed(tmp_path, "a") == ["a b"]
