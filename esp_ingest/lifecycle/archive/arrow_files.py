"""An object store as a file system for pyarrow, which reads parts of files by name and does nothing else."""

import io
from typing import Any

import obstore
import pyarrow as pa
import pyarrow.fs

_BUFFER_BYTES = 1_048_576


class ObjectFiles(pyarrow.fs.FileSystemHandler):  # type: ignore[misc]  # pyarrow has no annotations
    """Reads through obstore, with the same credentials as all other access."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def open_input_file(self, path: str) -> Any:
        """A file that can be read from any position."""
        reader = io.BufferedReader(_Reader(obstore.open_reader(self._store, path)), _BUFFER_BYTES)
        return pa.PythonFile(reader, mode="r")

    def open_input_stream(self, path: str) -> Any:
        """The same as :meth:`open_input_file`."""
        return self.open_input_file(path)

    def get_file_info(self, paths: list[str]) -> list[Any]:
        """Every name is a file, because the names are taken from manifests."""
        return [pyarrow.fs.FileInfo(path, pyarrow.fs.FileType.File) for path in paths]

    def get_type_name(self) -> str:
        """The name of this file system in pyarrow's messages."""
        return "esp-ingest archive"

    def normalize_path(self, path: str) -> str:
        """The path as it is: names from manifests need no change."""
        return path

    def _refuse(self, *_: Any) -> Any:
        raise NotImplementedError("the archive is only read")

    get_file_info_selector = create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _refuse
    delete_file = move = copy_file = open_output_stream = open_append_stream = _refuse


class _Reader(io.RawIOBase):
    """A file of obstore with the interface of Python's raw files."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = memoryview(self._file.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, place: int, whence: int = 0) -> int:
        return int(self._file.seek(place, whence))

    def tell(self) -> int:
        return int(self._file.tell())
