"""libkrun's log, read line by line for what it alone tells.

- Whether a status is the app's: a guest that ends without having reported one (a kernel panic, a
  reset) makes libkrun exit with 0, and says at debug level "using vcpu exit code" in place of
  "using vmm exit code" (src/vmm/src/lib.rs, 1.10 to 2.x).
- What the guest's kernel prints on its console, which comes as errors of the console's port.
- libkrun's own errors, which go to krunclient's log, marked as such.
- That a thread of libkrun has panicked, which Rust's runtime says on standard error: the others go
  on, and whoever waits for that one waits for good.
"""

from __future__ import annotations

from krunclient.log import CONSOLE, LIBKRUN, LIBKRUN_NOTE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krunclient.log import Log

# What the console's port has as target of its messages, old and new.
CONSOLE_MODULES = ("init_or_kernel", "devices::virtio::console::port_io")
# Errors by their text, of which libkrun itself takes care: a receive queue that is full for now.
HARMLESS = ("couldn't push pkt to queue, adding it to rxq",)
MAX_LINE_BYTES = 8192
MAX_MESSAGE_CHARACTERS = 200
MAX_OWN_ERRORS = 20  # a guest may be able to cause them


class LibkrunLog:
    """`without_status` as above. `thread_panic` is the message of the first thread of libkrun that
    panicked, empty if none did. With `console` each error is shown as it is.
    """

    def __init__(self, log: Log, *, console: bool) -> None:
        self.without_status = False
        self._log = log
        self._console = console
        self._incomplete = b""
        self._last_error = ""
        self._panic = ""
        self._panicking = ""
        self.thread_panic = ""
        self._own_errors = 0

    def feed(self, data: bytes) -> None:
        lines = (self._incomplete + data).split(b"\n")
        self._incomplete = lines.pop()[-MAX_LINE_BYTES:]
        for line in lines:
            self._line(line.decode("utf-8", "replace"))

    def reason(self) -> str:
        """The likely cause, in parentheses to follow a sentence; empty if unknown."""
        cause = self._panic or self.thread_panic or self._last_error
        return f" ({cause})" if cause else ""

    def _line(self, line: str) -> None:
        if self._panicking and not self.thread_panic:
            self.thread_panic = f"{self._panicking} {line.strip()}"[:MAX_MESSAGE_CHARACTERS]
        if line.startswith("thread '") and " panicked at " in line:
            self._panicking = line.strip()
            return
        head, _, message = line.partition("] ")
        level, _, target = head.partition(" ")[2].strip().partition(" ")
        module = target.strip().removeprefix("krun_")
        if level == "DEBUG" and module == "vmm":
            if message.startswith("using vcpu exit code"):
                self.without_status = True
            elif message.startswith("using vmm exit code"):
                self.without_status = False
        elif level == "ERROR" or not target:
            self._error(line, message.strip(), module)

    def _error(self, line: str, message: str, module: str) -> None:
        if self._console:
            self._log.pass_on(CONSOLE, line)
        if not message:
            return
        if message in HARMLESS:
            self._log.write(LIBKRUN_NOTE, f"libkrun: {message}")
            return
        self._last_error = message[:MAX_MESSAGE_CHARACTERS]
        if "Kernel panic" in message and not self._panic:
            self._panic = self._last_error
        if module in CONSOLE_MODULES or self._console:
            return
        self._own_errors += 1
        if self._own_errors <= MAX_OWN_ERRORS:
            self._log.write(LIBKRUN, f"libkrun: {self._last_error}")
        elif self._own_errors == MAX_OWN_ERRORS + 1:
            self._log.write(LIBKRUN, "libkrun: further errors are left out")
