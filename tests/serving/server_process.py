"""`hne-serve` in a process of its own."""

import pathlib
import subprocess
import sys

from hne_tf.bin import serve


class ServerProcess:
    """A server in a process of its own, which comes back at the same address."""

    def __init__(self, *flags):
        self._flags = flags
        self._port = 0
        self._address = None
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "hne_tf.bin.serve"),
                *(*self._flags, f"--port={self._port}"),
            ],
            cwd=pathlib.Path(serve.__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    @property
    def address(self):
        """Waits until it serves."""
        if self._address is None:
            line = self.process.stdout.readline()
            self._address = line.rsplit("address=", 1)[1].strip()
            self._port = int(self._address.rsplit(":", 1)[1])
        return self._address

    def end(self, number):
        self.process.send_signal(number)
        self.process.wait(30)
        self.process.stdout.close()
        self._address = None

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
