"""Folders of this user in the host's folder for temporary files."""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path


def own_folder(name: str) -> Path:
    """Return the folder ``callboard-<name>-<user>`` among the temporary files; create it if it does not exist.

    Raises PermissionError if another user created it: links in it could redirect writes to other files. Raises OSError
    if it can't be created.
    """
    folder = Path(tempfile.gettempdir()) / f"callboard-{name}-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} is not a folder of this user")
    return folder
