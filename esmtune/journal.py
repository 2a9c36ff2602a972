"""What an unfinished run has on disk, so that it can go on where it was stopped, to the bit.

Each entry is one safetensors file, tensors and a line of JSON, written under another name and then
renamed: after a kill at any moment there is the old entry or the new one.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from esmtune.writers import whole_file, write_json

IDENTITY = "identity.json"  # what must be the same for a run to go on
# What is said of parts of it that are no options, with what they were and what they are now.
CHANGED = {
    "data_sha256": "begun with other data (SHA-256 {!s:.12}..., now {!s:.12}...)",
    "version": "begun by esmtune {}, and this is {}, which may train otherwise",
}

Entry = tuple[dict[str, Tensor], dict[str, Any]]


class Journal:
    """The entries of a run that is not finished, in a folder beside it; without a folder, nothing is kept.

    Of several processes one writes; the others read entries alone.
    """

    def __init__(self, folder: Path | None, minutes: float = 0.0, *, writes: bool = True):
        self.folder, self.seconds, self.writes = folder, 60 * minutes, writes
        self._saved = time.monotonic()

    def open(self, identity: Mapping[str, Any], *, resume: bool) -> bool:
        """Begin, or find what was begun with the same data and options; returns whether there was something.

        Raises:
            ValueError: if there is an unfinished run and it is not to be resumed, or it is another run.
        """
        if self.folder is None or not self.writes:
            return False
        file = self.folder / IDENTITY
        if not file.is_file():
            if self.folder.exists() and any(not path.name.startswith(".") for path in self.folder.iterdir()):
                raise ValueError(f"{self.folder} is where a run keeps what it needs to go on, but holds other things.")
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(identity, file)
            return False
        if not resume and any(self.folder.glob("*.safetensors")):
            raise ValueError(
                f"{self.folder} holds a run that was stopped. Go on with --resume, or start anew with --overwrite."
            )
        if not any(self.folder.glob("*.safetensors")):  # it was stopped before there was anything to go on from
            write_json(identity, file)
            return False
        before, now = json.loads(file.read_text(encoding="utf-8")), json.loads(json.dumps(identity))
        changed = [name for name in now if before.get(name) != now[name]]
        if changed:
            name = min(changed)
            what = CHANGED.get(name, f"begun with {name} {{!r}}, but now it is {{!r}}")
            raise ValueError(
                f"the run in {self.folder} was {what.format(before.get(name), now.get(name))}: that is another run. "
                "Give the same data and options to --resume, or start anew with --overwrite."
            )
        return True

    def agree(self, name: str, value: str) -> None:
        """Note one more thing that must be the same for the run to go on, or compare it with what was noted.

        Raises:
            ValueError: if it is another.
        """
        noted = self.kept(name, value)
        if noted != value:
            raise ValueError(
                f"the run in {self.folder} had another {name} ({noted[:12]}..., now {value[:12]}...): that is another "
                "run. Give the same to --resume, or start anew with --overwrite."
            )

    def kept(self, name: str, found: Any) -> Any:
        """What was found out when the run began, of one more thing that this machine may tell otherwise by now."""
        if self.folder is None or not self.writes:
            return found
        file = self.folder / IDENTITY
        noted = json.loads(file.read_text(encoding="utf-8"))
        value = noted.setdefault(name, found)
        write_json(noted, file)
        return value

    @property
    def is_due(self) -> bool:
        """Whether it is time to save again."""
        return self.folder is not None and time.monotonic() - self._saved >= self.seconds

    def save(self, name: str, entry: Entry) -> None:
        """Write an entry, whole or not at all."""
        if self.folder is not None:
            write_entry(self.folder / f"{name}.safetensors", entry)
            self._saved = time.monotonic()

    def read(self, name: str) -> Entry | None:
        """An entry, or None if it was not written."""
        if self.folder is None or not (self.folder / f"{name}.safetensors").is_file():
            return None
        return read_entry(self.folder / f"{name}.safetensors")

    def close_if_empty(self) -> None:
        """Leave no folder behind where a run ended before it had anything to go on from."""
        if self.folder is not None and not any(self.folder.glob("*.safetensors")):
            self.close()

    def close(self) -> None:
        """Forget everything, for the run is finished or begins anew; a folder of something else is left alone."""
        if self.folder is None or not self.writes or not (self.folder / IDENTITY).is_file():
            return
        for file in (*self.folder.glob("*.safetensors"), *self.folder.glob(".*.tmp"), self.folder / IDENTITY):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # somebody put something else into it
            self.folder.rmdir()


def write_entry(path: Path, entry: Entry) -> None:
    """Write tensors and what JSON can hold to one file."""
    tensors, facts = entry
    with whole_file(path) as temporary:
        save_file(
            {n: t.detach().cpu().contiguous() for n, t in tensors.items()}, temporary, {"facts": json.dumps(facts)}
        )


def read_entry(path: Path) -> Entry:
    """Read what `write_entry` wrote.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            # Copies, for the file will go, and what lies in it is not aligned.
            return {name: file.get_tensor(name).clone() for name in file.keys()}, facts  # noqa: SIM118 - no dictionary
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}). Start anew with --overwrite.") from None


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """Give an event that SIGTERM sets, while the context lasts; a second one ends the process at once.

    Signals reach the main thread alone.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def hear(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        event.set()

    before = signal.signal(signal.SIGTERM, hear)
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
