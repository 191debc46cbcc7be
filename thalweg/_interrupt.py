"""Ctrl-C that waits for a good moment: between two chunks, never in the middle of a write."""

import signal
import threading
from types import FrameType, TracebackType


class Interruptions:
    """A context in which the first Ctrl-C is only noted (`asked` becomes true) and the second raises at once.

    Outside the main thread, or where the program has its own handler, Ctrl-C is left as it is.
    """

    def __init__(self) -> None:
        self.asked = False
        self._installed = False

    def __enter__(self) -> "Interruptions":
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)
            self._installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._installed = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
