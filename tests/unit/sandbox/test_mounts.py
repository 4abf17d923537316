"""The steps of the mounts are data, and hold their order."""

from __future__ import annotations

from krunclient.model import Files, Volume
from krunclient.sandbox import mounts


def kinds(*, overlay: str | None = None, init_file: str | None = None) -> list[str]:
    files = Files(
        root_path="/srv/a:b,c",
        overlay=overlay,
        overlay_size_mib=64,
        volumes=(Volume(host_directory="/v", guest_directory="/w", read_only=True),),
    )
    steps = mounts.operations(files, user_namespace=True, init_file=init_file)
    return [type(step).__name__ for step in steps]


def test_the_layers_are_out_of_sight_before_the_root_is_closed() -> None:
    steps = kinds()
    assert steps[0] == "MakePrivate"
    assert steps[-1] == "PivotRoot"
    assert steps.index("Overlay") < steps.index("Unmount") < steps.index("BindVolume")


def test_writes_go_to_memory_or_to_the_overlay_directory() -> None:
    assert "MemoryLayer" in kinds()
    assert "MemoryLayer" not in kinds(overlay="/o")


def test_the_place_of_the_init_file_is_in_no_layer_that_stays() -> None:
    steps = kinds(overlay="/o", init_file="/.krun_config.json")
    assert steps.index("PlaceForInitFile") < steps.index("Overlay") < steps.index("InitFile")


def test_a_configuration_file_is_mounted_only_where_libkrun_cant_serve_it() -> None:
    assert "InitFile" not in kinds()
    assert kinds(init_file="/.krun_config.json")[-2] == "InitFile"


def test_no_host_path_is_part_of_a_mount_option() -> None:
    overlay = mounts.Overlay(lower="lower", layer="layer", path="guest", user_xattr=True)
    files = Files(root_path="/srv/a:b,c", overlay="/o,p", overlay_size_mib=1, volumes=())
    assert overlay in mounts.operations(files, user_namespace=True, init_file=None)


def test_each_step_describes_itself_in_one_line() -> None:
    files = Files(root_path="/srv", overlay=None, overlay_size_mib=64, volumes=())
    for step in mounts.operations(files, user_namespace=False, init_file=None):
        assert step.describe().startswith(type(step).__name__)
        assert "\n" not in step.describe()


def test_a_program_for_the_guest_is_in_a_layer_below_its_writes() -> None:
    files = Files(root_path="/srv", overlay="/o", overlay_size_mib=64, volumes=())
    program = ("/host/program", "/.program")
    steps = mounts.operations(files, user_namespace=True, init_file=None, guest_program=program)
    kinds = [type(step).__name__ for step in steps]
    assert kinds.index("GuestProgram") < kinds.index("Overlay")
    (overlay,) = (step for step in steps if isinstance(step, mounts.Overlay))
    assert overlay.lower.split(":") == ["init-layer", "lower"]


def test_names_that_are_given_take_the_place_of_the_roots() -> None:
    own = b"127.0.0.1 localhost a.example # kept\n10.0.0.1\ta.example\n# a.example\n\n::1 b\n"
    found = mounts._without({b"a.example"}, own)
    assert found == b"127.0.0.1 localhost\n# a.example\n\n::1 b\n"
    assert mounts._without(set(), own) == own
