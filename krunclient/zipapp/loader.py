"""The first code of a copy, which `start` runs: what imports find, and the way into krunclient."""

import _signal  # built in; `signal` is not, and brings in `enum`
import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import CodeType, ModuleType
    from typing import Any, NoReturn

    Codes = dict[str, CodeType]
    Files = Mapping[str, tuple[int, int]]

LATER = "later"  # the file of what a launch does not import
ModuleSpec = type(sys.__spec__)  # importlib.machinery's, of which nothing else is needed


def prepare(
    target: str,
    content: "tuple[Files, Codes, Sequence[str]]",
    read: "Callable[[str], Any]",
) -> "Callable[[int | None], None]":
    """Look whether the rest of the copy in `target` is whole, and have imports find its code.

    Returns what starts a launch. Raises OSError.
    """
    files, codes, packages = content
    for name, expected in files.items():
        found = os.lstat(f"{target}/{name}")
        if (found.st_size, found.st_ctime_ns) != expected:
            raise OSError
    # Under nohup, say, a stop would go unheard until the supervisor blocks these and looks at them.
    for number in (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM):
        if _signal.getsignal(number) == _signal.SIG_IGN:
            _signal.signal(number, _signal.SIG_DFL)
    importer = Importer(target, codes, packages, read)
    sys.meta_path.insert(0, importer)
    return importer.launch


def open_standard_descriptors() -> None:
    """A descriptor of 0 to 2 that is closed would be taken by the next open, and some are for good:
    libffi (3.5) keeps a file open from the import of ctypes on. Raises OSError.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError as error:
            if error.errno == errno.EBADF:
                os.open(os.devnull, os.O_RDWR)  # which takes that number


def fail(what: str, thing: str, why: str, remedy: str, status: int) -> "NoReturn":
    line = f"krunclient: error: {what}: {thing}: {why}; {remedy}\n"
    try:
        os.write(2, line.encode("utf-8", "backslashreplace"))
    finally:
        os._exit(status)


class Importer:
    """Finds and loads krunclient's modules, importlib.abc's MetaPathFinder and Loader."""

    def __init__(
        self,
        target: str,
        codes: "Codes",
        packages: "Sequence[str]",
        read: "Callable[[str], Any]",
    ) -> None:
        self._target = target
        self._codes = codes
        self._packages = packages
        self._read = read

    def launch(self, parent: "int | None") -> None:
        """Load what a launch needs, and go on into it."""
        try:
            open_standard_descriptors()
            for name in list(self._codes):
                self.load(name)
        except (OSError, ImportError, MemoryError) as error:
            why = str(error) or "not enough memory"
            remedy = "see which limit has been reached"
            fail("krunclient can't be loaded", self._target, why, remedy, 70)
        sys.modules["krunclient.__main__"].main(parent)

    def find_spec(self, name: str, path: object = None, module: object = None) -> "Any":
        """Raises ImportError where the file of the rest is damaged."""
        if name.partition(".")[0] != "krunclient":
            return None
        if name not in self._codes:
            self._add_the_rest()
        if name not in self._codes:
            return None
        is_package = name in self._packages
        file = f"{self._target}/site-packages/{name.replace('.', '/')}"
        file += "/__init__.py" if is_package else ".py"
        spec = ModuleSpec(name, self, origin=file, is_package=is_package)  # type: ignore[arg-type]
        spec.has_location = True
        return spec

    def load(self, name: str) -> None:
        """Import a module whose parent and imports are there. It takes a third of the time that
        the import system takes.
        """
        spec = self.find_spec(name)
        module = sys.modules[name] = type(sys)(name)
        module.__spec__, module.__file__ = spec, spec.origin
        module.__loader__ = self  # type: ignore[assignment]
        module.__package__ = spec.parent
        if spec.submodule_search_locations is not None:
            module.__path__ = spec.submodule_search_locations
        self.exec_module(module)
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, module)

    def create_module(self, spec: object) -> None:
        """As usual."""

    def exec_module(self, module: "ModuleType") -> None:
        exec(self._codes.pop(module.__name__), module.__dict__)

    def _add_the_rest(self) -> None:
        path = f"{self._target}/{LATER}"
        try:
            self._codes.update(self._read(path))
        except (OSError, ValueError, EOFError, TypeError) as error:
            raise ImportError(str(error), path=path) from None
