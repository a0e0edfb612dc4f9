"""Callers that never stop asking."""

import concurrent.futures
import threading
import time

_CALLERS = 3
_LONGEST_S = 240.0


class Load:
    """Callers that ask one request after another until the end of the block."""

    def __init__(self, ask):
        self._call = ask
        self._over = threading.Event()
        self._changed = threading.Condition()
        self.answers = []

    def __enter__(self):
        self._threads = concurrent.futures.ThreadPoolExecutor(_CALLERS)
        self._callers = [self._threads.submit(self._ask) for _ in range(_CALLERS)]
        return self

    def __exit__(self, *error):
        self._over.set()
        self._threads.shutdown()
        # What a caller has raised is what has lost a request.
        for caller in self._callers:
            caller.result()

    def _ask(self):
        while not self._over.wait(0.02):
            answer = self._call()
            with self._changed:
                self.answers.append(answer)
                self._changed.notify_all()

    def until(self, wanted):
        """Waits for an answer that is wanted, of the requests from now on."""
        end = time.monotonic() + _LONGEST_S
        with self._changed:
            seen = len(self.answers) + _CALLERS
            while not any(map(wanted, self.answers[seen:])):
                assert time.monotonic() < end
                assert not any(caller.done() for caller in self._callers)
                self._changed.wait(1.0)
