"""A folder whose files grow: on a disk itself, for a bucket a local copy that is uploaded.

Objects in a bucket cannot be appended to. What grows is written to a local folder and uploaded as a
whole: when `publish` is called, and every minute.
"""

import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from scratchdet_jax.errors import UserError, one_line
from scratchdet_jax.files import write_bytes
from scratchdet_jax.paths import in_bucket
from scratchdet_jax.progress import say

PUBLISHED_EVERY = 60.0  # seconds


class Mirror:
    """The folder to write to.

    Attributes:
        target: the folder that the user named.
        folder: the one to write to: `target`, or a temporary one if that is in a bucket.
    """

    def __init__(self, target: Path, existing: Sequence[str] = ()) -> None:
        """Opens the folder; `existing` are the names of files to continue, if they exist.

        Raises:
            OSError: one of these cannot be read.
        """
        self.target = self.folder = target
        self._published: dict[Path, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        if not in_bucket(target):
            return
        self.folder = Path(tempfile.mkdtemp(prefix="scratchdet-"))
        for name in existing:
            if (target / name).exists():
                (self.folder / name).write_bytes((target / name).read_bytes())
        self._thread = threading.Thread(target=self._publish_regularly, daemon=True)
        self._thread.start()

    def publish(self) -> None:
        """Uploads what has changed and removes what was deleted; then the bucket has the same.

        Raises:
            OSError: that failed.
        """
        if not self._thread:
            return
        with self._lock:
            files = {path for path in self.folder.rglob("*") if path.is_file()}
            if not self._closing.is_set():  # hidden files are being written
                files = {path for path in files if not path.name.startswith(".")}
            for path in sorted(files):
                try:
                    status = path.stat()
                    version = (status.st_mtime_ns, status.st_size)
                    if self._published.get(path) == version:
                        continue
                    content = path.read_bytes()
                except FileNotFoundError:  # deleted meanwhile
                    continue
                write_bytes(self._object(path), content)
                self._published[path] = version
            for path in self._published.keys() - files:
                self._object(path).unlink(missing_ok=True)
                del self._published[path]

    def _object(self, path: Path) -> Path:
        return self.target / path.relative_to(self.folder).as_posix()

    def close(self) -> None:
        """Uploads what has changed; removes the local copy.

        Raises:
            UserError: the upload failed; the local copy stays.
        """
        if not self._thread:
            return
        self._closing.set()
        self._thread.join()
        try:
            self.publish()
        except OSError as error:
            raise UserError(
                f"{self.target} cannot be written ({error.strerror or error}): the files are in "
                f"{self.folder}; copy them yourself"
            ) from None
        self._thread = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def _publish_regularly(self) -> None:
        reported = False
        while not self._closing.wait(PUBLISHED_EVERY):
            try:
                self.publish()
            except OSError as error:
                if not reported:
                    say(
                        f"warning: {self.target} cannot be written ({error.strerror or error}): "
                        f"the files wait in {self.folder}",
                        error=True,
                    )
                reported = True
            except Exception as error:  # of a library: the next attempt may succeed
                say(f"warning: {self.target} cannot be written ({one_line(error)})", error=True)
