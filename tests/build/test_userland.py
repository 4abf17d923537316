"""The user land of an emulated host of another architecture."""

from __future__ import annotations

from pathlib import Path

from tests.framework.userland import drop_set_id_bits


def test_no_program_runs_as_who_unpacked_it_and_all_else_keeps_its_mode(tmp_path: Path) -> None:
    modes = {"mount": 0o4755, "wall": 0o2755, "cat": 0o755, "passwd": 0o644}
    for name, mode in modes.items():
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    (tmp_path / "umount").symlink_to("nowhere")
    drop_set_id_bits(tmp_path)
    found = {name: (tmp_path / name).stat().st_mode & 0o7777 for name in (*modes, "tmp")}
    assert found == {"mount": 0o755, "wall": 0o755, "cat": 0o755, "passwd": 0o644, "tmp": 0o1777}
