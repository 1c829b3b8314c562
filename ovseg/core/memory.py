"""Memory that a long computation on the CPU keeps for its next tensors."""

import ctypes
import os
import sys

SWITCH = "OVSEG_KEEP_MEMORY"  # environment variable: 0 leaves the allocator as it is

# Of mallopt, see malloc.h.
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_MAX = -4
LARGEST = 2**31 - 1  # mallopt takes an int
TOP_PAD = 64 * 2**20


def keep_freed_memory() -> bool:
    """Let glibc keep the memory of freed tensors for the next ones.

    By default glibc returns each large tensor to the kernel as soon as it is freed, and the kernel
    fills the next one with zeros, page by page: at every step. docs/speed.md says what that takes.
    Kept memory counts as used until the process ends, and holes between tensors make the peak a
    little higher. A process that is started by `fork`, such as a worker of a loader, has the
    setting of its parent.

    It is for a process that computes for long; a library should not do this to its caller.

    Returns:
        Whether memory is kept: not where the environment variable `SWITCH` is 0, and not with
        another allocator than glibc's.
    """
    if os.environ.get(SWITCH) == "0" or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl, for example, has none
        return False
    no_mapping = mallopt(M_MMAP_MAX, 0)
    no_trimming = mallopt(M_TRIM_THRESHOLD, LARGEST)
    large_steps = mallopt(M_TOP_PAD, TOP_PAD)
    return bool(no_mapping and no_trimming and large_steps)
