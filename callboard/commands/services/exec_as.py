"""Executes another program, optionally as another user, that ends when the process that started it ends.

`python -I -S exec_as.py PARENT SIGNAL UID GID REACH PROGRAM ARGUMENT…`, run before the program instead of a
`preexec_fn`, which isn't safe beside threads. Needs nothing but the standard library.

PARENT is the caller's pid. The program gets the signal number SIGNAL when PARENT ends for any reason (only on Linux).
UID and GID of -1 keep the user. REACH of 1 lets the new user read in folders that only root can open, such as a clone
under /root; it gives no additional write access.
"""

import ctypes
import os
import sys

# From <linux/prctl.h>, <linux/securebits.h> and <linux/capability.h>.
SET_DEATH_SIGNAL, SET_SECURE_BITS, AMBIENT, AMBIENT_RAISE = 1, 28, 47, 2
NO_SETUID_FIXUP, KEEP_CAPABILITIES = 1 << 2, 1 << 4
CAPABILITY_VERSION_3 = 0x20080522
DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2


def prctl(*arguments: int) -> bool:
    """Make the system call with these arguments, padded with zeros to five; return whether it succeeded."""
    padded = [*arguments, 0, 0, 0, 0][:5]
    return bool(ctypes.CDLL(None).prctl(padded[0], *map(ctypes.c_ulong, padded[1:])) == 0)


def keep_capability(number: int) -> bool:
    """Pass one capability of root on to the program; return whether that succeeded."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    wanted = (ctypes.c_uint32 * 6)(*[1 << number] * 3, 0, 0, 0)
    taken = ctypes.CDLL(None).capset(header, wanted) == 0
    return taken and prctl(AMBIENT, AMBIENT_RAISE, number)


def become(uid: int, gid: int, *, reach: bool) -> None:
    """Change from root to another user."""
    if reach:
        # Without the first bit, access(2), which PostgreSQL calls for its programs, checks only the user.
        prctl(SET_SECURE_BITS, NO_SETUID_FIXUP | KEEP_CAPABILITIES)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    if reach:
        # A container often lacks the first one and has the second.
        _ = keep_capability(DAC_READ_SEARCH) or keep_capability(DAC_OVERRIDE)


def main(parent: str, signal: str, uid: str, gid: str, reach: str, *command: str) -> None:
    """Change the user and execute `command`."""
    if int(uid) >= 0:
        become(int(uid), int(gid), reach=reach == "1")
    if sys.platform == "linux":
        prctl(SET_DEATH_SIGNAL, int(signal))
    if os.getppid() != int(parent):
        sys.exit(f"{command[0]}: not started, because its parent has ended")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
