"""Freed memory stays with a process that asked for it."""

import subprocess
import sys

import pytest

from ovseg.core.memory import keep_freed_memory

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only glibc can keep memory"
)

# Prints the page faults of 64 MiB that are filled after as many were freed.
COUNT_FAULTS = """
import ctypes, resource
from ovseg.core.memory import keep_freed_memory
kept = keep_freed_memory()
libc = ctypes.CDLL("libc.so.6")
libc.malloc.argtypes = [ctypes.c_size_t]
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(2**26)
    ctypes.memset(block, 1, 2**26)
    libc.free(block)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(kept, faults)
"""


def count_faults(switch: str) -> tuple[str, int]:
    environment = {"OVSEG_KEEP_MEMORY": switch}
    text = subprocess.check_output([sys.executable, "-c", COUNT_FAULTS], env=environment, text=True)
    kept, faults = text.split()
    return kept, int(faults)


def test_large_block_takes_the_memory_of_the_one_before():
    kept, faults = count_faults("1")
    assert kept == "True"
    assert faults < 100  # 64 MiB have 16,384 pages


def test_switch_leaves_the_allocator_as_it_is():
    kept, faults = count_faults("0")
    assert kept == "False"
    assert faults > 10_000


def test_tests_themselves_do_not_keep_memory():
    assert not keep_freed_memory()
