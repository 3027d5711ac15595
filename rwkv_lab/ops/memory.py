"""How the C library hands back memory: kept for the next step instead of returned to the system."""

import ctypes
import platform

# parameter numbers of mallopt, from malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process reuse freed tensors' pages: a fresh page costs more to map than a kernel takes to fill it.

    By default glibc returns freed blocks of a few megabytes to the system at once, and every step maps them anew.
    Whether it took effect: False where the C library is not glibc. The process keeps its peak memory until it ends.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_THRESHOLD, LARGEST)) and bool(libc.mallopt(M_TRIM_THRESHOLD, LARGEST))
