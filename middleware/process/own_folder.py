"""Folders of this user among the temporary files of the host."""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path


def own_folder(name: str) -> Path:
    """Return the folder ``callboard-<name>-<user>`` among the temporary files; make it if it is not there.

    Anybody may have made one of this name before, with links in it to files that would be written to: raises
    PermissionError. Raises OSError if there is no place for it.
    """
    folder = Path(tempfile.gettempdir()) / f"callboard-{name}-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} is not a folder of this user")
    return folder
