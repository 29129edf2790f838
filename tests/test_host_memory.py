"""What a process keeps of freed memory, seen from outside: by its page faults and resident set."""

import os
import platform
import subprocess
import sys

import pytest

from vmae_jax.host_memory import accelerators

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="settings of glibc's malloc"
)

# Says whether it keeps, then the page faults of ten pieces of 100 MB, each used and freed, in a
# thread that starts after the setting.
FAULTS = """
import resource, threading
from vmae_jax import host_memory
print(host_memory.keep_freed_pieces())
def use():
    for _ in range(10):
        bytearray(100 * 2**20)[::4096] = bytes(25600)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
thread = threading.Thread(target=use)
thread.start(); thread.join()
print(faults() - before)
"""


def run(code, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    output = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**kept, **environment},
    ).stdout
    return output.split()


@pytest.mark.skipif(accelerators(), reason="where there is an accelerator nothing is set")
def test_a_thread_uses_the_same_pages_again():
    keeps, faults = run(FAULTS)
    assert keeps == "True"
    pages = 100 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert int(faults) < 2 * pages  # of the first piece alone


@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_ARENA_MAX": "4"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}],
)
def test_settings_of_the_environment_stand(environment):
    keeps, faults = run(FAULTS, **environment)
    assert keeps == "False"
    pages = 100 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert int(faults) > 8 * pages


def test_what_was_freed_goes_back_when_asked():
    """Small pieces below one that stays: only asking gives them back."""
    code = """
from vmae_jax import host_memory
host_memory.keep_freed_pieces()
def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("VmRSS")) / 1024
pieces = [bytearray(50_000) for _ in range(4000)]
last = bytearray(50_000)
del pieces
before = resident()
host_memory.give_back_freed_pieces()
print(before - resident())
"""
    assert float(run(code)[0]) > 150  # of 191 MiB


def test_whoever_has_a_model_has_the_setting():
    code = """
from vmae_jax import host_memory
host_memory.keep_freed_pieces.cache_clear()
calls = []
host_memory.ctypes.CDLL = lambda name: calls.append(name)
import vmae_jax
vmae_jax.VideoMAEModel
print(len(calls))  # asks for the C library
"""
    assert run(code, JAX_PLATFORMS="cpu") == ["1"]
