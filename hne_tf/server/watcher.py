"""Follows the versions that are published below a base path, as TF Serving does."""

import pathlib
import threading
import time
from collections.abc import Callable

from hne_tf.errors import InputError
from hne_tf.exported.versions import latest_version_path, version_paths
from hne_tf.server.catalog import Catalog
from hne_tf.server.servable import Servable

# A version that has not changed since it was refused is tried again this much
# later, TF Serving's own interval: its reason may have been outside of it.
RETRY_S = 60.0

_Fingerprint = frozenset[tuple[str, int, int]]


class VersionWatcher:
    """Loads the largest version and hands it to the catalog, now and later.

    A version that cannot be loaded or fails its warm-up is refused, with one line
    per change of its files, and the next smaller one counts, unless that is
    what is served already. With no version left the one in memory goes on.

    Args:
      catalog: where versions are published.
      base_path: the folder that holds them.
      interval_s: seconds between two looks; 0 never looks again.
      report: takes a line about a version that was refused or taken into service.
      load: makes a servable of the model's name and a version's folder.
    """

    def __init__(
        self,
        catalog: Catalog,
        base_path: pathlib.Path,
        interval_s: float = 0.0,
        report: Callable[[str], None] = lambda line: None,
        load: Callable[[str, pathlib.Path], Servable] = Servable,
    ) -> None:
        self._catalog = catalog
        self._base_path = base_path
        self._interval_s = interval_s
        self._report = report
        self._make = load
        self._refused: dict[int, tuple[_Fingerprint, float]] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="versions", daemon=True)

    def start(self) -> None:
        """Publishes the first version and looks for others from a thread of its own.

        Raises:
          InputError: if there is none that can be loaded.
        """
        latest_version_path(self._base_path)
        reasons = self.look()
        if self._catalog.served is None:
            raise InputError(f"no version can be served: {'; '.join(reasons)}")
        for reason in reasons:
            self._report(reason)
        if self._interval_s:
            self._thread.start()

    def stop(self, timeout_s: float = 0.0) -> None:
        """Ends looking, and waits up to `timeout_s` for a load that is under way."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def look(self) -> list[str]:
        """Looks once; returns why versions were refused that had not been before as they are.

        Raises:
          InputError: if the base path is no folder.
        """
        reasons = []
        for path in version_paths(self._base_path):
            served = self._catalog.served
            if served is not None and int(path.name) == served.version:
                break
            fingerprint = _fingerprint(path)
            before, tried = self._refused.get(int(path.name), (None, 0.0))
            if fingerprint == before and time.monotonic() < tried + RETRY_S:
                continue
            reason = self._load(path)
            if reason is None:
                self._refused.pop(int(path.name), None)
                break
            self._refused[int(path.name)] = (fingerprint, time.monotonic())
            if fingerprint != before:
                reasons.append(reason)
        return reasons

    def _load(self, path: pathlib.Path) -> str | None:
        """Takes a version into service; returns the reason if that fails."""
        version = int(path.name)
        self._catalog.loading(version)
        servable = None
        try:
            servable = self._make(self._catalog.name, path)
            servable.warm_up()
        except Exception as error:
            # Whatever is wrong with a version, the one in service must go on.
            if servable is not None:
                servable.close()
            reason = f"version {version} refused: {' '.join(str(error).split())}"
            self._catalog.refused(version, reason)
            return reason
        self._catalog.publish(servable)
        return None

    def _follow(self) -> None:
        complaint = None
        while not self._stopped.wait(self._interval_s):
            before = self._catalog.served
            try:
                for reason in self.look():
                    self._report(reason)
                complaint = None
            except (InputError, OSError) as error:
                if str(error) != complaint:
                    complaint = str(error)
                    self._report(f"cannot look for versions: {complaint}")
            if self._catalog.served is not before:
                self._report(f"version {self._catalog.served.version} is served now")


def _fingerprint(folder: pathlib.Path) -> _Fingerprint:
    """Names, sizes and times of the files in a folder that others may be writing."""
    found = set()
    for path in folder.rglob("*"):
        try:
            entry = path.stat()
        except FileNotFoundError:
            continue
        found.add((str(path), entry.st_size, entry.st_mtime_ns))
    return frozenset(found)
