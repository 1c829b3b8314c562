"""Freed memory stays with a process that asked for it."""

import subprocess
import sys

import pytest

from ovseg.core.memory import keep_freed_memory

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only glibc can keep memory"
)

# Prints the fewest page faults of a large tensor, after equal ones were freed.
COUNT_FAULTS = """
import resource
from ovseg.core.memory import keep_freed_memory
kept = keep_freed_memory()
import torch
faults = []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24).sum()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(kept, min(faults))
"""


def count_faults(switch: str) -> tuple[str, int]:
    environment = {"OVSEG_KEEP_MEMORY": switch, "THP_MEM_ALLOC_ENABLE": "1"}
    text = subprocess.check_output([sys.executable, "-c", COUNT_FAULTS], env=environment, text=True)
    kept, faults = text.split()
    return kept, int(faults)


def test_large_tensor_takes_the_memory_of_the_one_before():
    kept, faults = count_faults("1")
    assert kept == "True"
    assert faults < 100  # 64 MiB have 16,384 pages, or about 540 with huge ones


def test_switch_leaves_the_allocator_as_it_is():
    kept, faults = count_faults("0")
    assert kept == "False"
    assert faults > 400


def test_tests_themselves_do_not_keep_memory():
    assert not keep_freed_memory()
