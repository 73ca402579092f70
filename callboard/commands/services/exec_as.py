"""Becomes another program, as another user if asked, that ends when the process that started it ends.

`python -I -S exec_as.py PARENT SIGNAL UID GID REACH PROGRAM ARGUMENT…`, run before the program instead of a
`preexec_fn`, which isn't safe beside threads. Needs nothing but the standard library.

PARENT is the caller's pid. The program gets the signal of number SIGNAL when PARENT ends, however it ends (on Linux
only). UID and GID of -1 keep the user. REACH of 1 lets the new user read in folders that only root can open, such as a
clone under /root; it can write nowhere new.
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
    """Make the system call with these arguments, filled up to five with zeros; return whether it succeeded."""
    padded = [*arguments, 0, 0, 0, 0][:5]
    return bool(ctypes.CDLL(None).prctl(padded[0], *map(ctypes.c_ulong, padded[1:])) == 0)


def keep_capability(number: int) -> bool:
    """Carry one capability of root over to the program; return whether that succeeded."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    wanted = (ctypes.c_uint32 * 6)(*[1 << number] * 3, 0, 0, 0)
    taken = ctypes.CDLL(None).capset(header, wanted) == 0
    return taken and prctl(AMBIENT, AMBIENT_RAISE, number)


def become(uid: int, gid: int, *, reach: bool) -> None:
    """Give up root for another user."""
    if reach:
        # Without the first bit access(2), which PostgreSQL asks about its programs, goes by the user alone.
        prctl(SET_SECURE_BITS, NO_SETUID_FIXUP | KEEP_CAPABILITIES)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    if reach:
        # A container often lacks the first one and has the second.
        _ = keep_capability(DAC_READ_SEARCH) or keep_capability(DAC_OVERRIDE)


def main(parent: str, signal: str, uid: str, gid: str, reach: str, *command: str) -> None:
    """Become `command`."""
    if int(uid) >= 0:
        become(int(uid), int(gid), reach=reach == "1")
    if sys.platform == "linux":
        prctl(SET_DEATH_SIGNAL, int(signal))
    if os.getppid() != int(parent):
        sys.exit(f"{command[0]}: not started, since its parent has ended")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
