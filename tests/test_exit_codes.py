"""What a run ends with, and whether it is started again."""

import errno
import signal

import pytest
from process_group import scripts

from vmae_jax.checkpoints import loading
from vmae_jax.data.bad_clips import TooManyBadClips
from vmae_jax.errors import MissingPackage, SettingError
from vmae_jax.processes import exit_codes
from vmae_jax.processes.exit_codes import exit_code
from vmae_jax.running.health import NonFinite
from vmae_jax.running.workdir_lock import WorkdirInUse


@pytest.fixture
def start():
    """(script, **Popen's) -> a Python process that runs it; killed at the end if it is not over."""
    with scripts() as start:
        yield start


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NonFinite("loss=nan"), 76),
        (SettingError("image_size=225 is not a multiple of patch_size=16."), 78),
        (MissingPackage("Please install gcsfs to access Google Storage"), 78),
        (OSError(errno.ENOSPC, "No space left on device"), 78),
        (OSError(errno.EROFS, "Read-only file system"), 78),
        (OSError(errno.EACCES, "Permission denied"), 78),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 78),
        (TooManyBadClips("500 of 1000"), 78),
        (WorkdirInUse("workdir='a'"), 78),
        # bugs of ours, or of a library: whoever raised a setting would have said so
        (ValueError("operands could not be broadcast together"), 70),
        (TypeError("make_source() got an unexpected keyword argument 'sped'"), 70),
        (ImportError("cannot import name 'Sorce'"), 70),
        (FloatingPointError("invalid value"), 70),
        (OSError(errno.EIO, "Input/output error"), 70),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), 70),
        (RuntimeError("anything"), 70),
        (MemoryError(), 70),
        # the last three: texts and types as JAX 0.10.2 and Orbax 0.12.8 raised them, when the other
        # of two processes was killed, on a full tmpfs, and (shortened) for a device out of memory
        (
            ValueError(
                "UNKNOWN: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair.cc:538] "
                "Read error [127.0.0.1]:7393: Connection reset by peer"
            ),
            70,
        ),
        (
            ValueError(
                'RESOURCE_EXHAUSTED: Failed writing: "/w/1.orbax-checkpoint-tmp/d/e34": Failed to '
                "write 5312512 bytes to file 7: No space left on device [os_error_code='28']"
            ),
            78,
        ),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes."), 70),
    ],
    ids=lambda value: str(value)[:40],
)
def test_exit_codes_tell_machines_from_settings(error, code):
    assert exit_code(error) == code


def test_an_unusable_checkpoint_has_its_own_code():
    assert exit_code(loading.CheckpointError("damaged")) == 77
    assert exit_code(loading.CheckpointMismatch("another model")) == 77


def test_codes_are_known_without_jax(start):
    process = start("""
        import sys
        from vmae_jax.running import run_control, supervisor
        from vmae_jax.processes.exit_codes import exit_code
        print(exit_code(run_control.Interrupted(1)), exit_code(KeyError()))
        heavy = {"jax", "flax", "orbax", "numpy", "vmae_jax.checkpoints.loading"}
        print(heavy & set(sys.modules))
    """)
    assert process.communicate()[0].splitlines() == ["130 70", "set()"], process.stderr


def test_only_crashes_preemptions_and_signals_are_retried():
    retried = [code for code in range(256) if exit_codes.is_retried(code)]
    # as shells count; Ctrl-C is meant
    signals = sorted(128 + number for number in signal.Signals if number != signal.SIGINT)
    assert retried == [70, 75, *signals]


def test_codes_are_described():
    killed = exit_codes.from_returncode(-signal.SIGKILL)
    assert killed == 137
    assert exit_codes.describe(killed) == "killed by SIGKILL"
    assert exit_codes.describe(70) == "exit code 70 (crash)"
    assert exit_codes.describe(142) == "killed by SIGALRM (a step took too long)"
    assert exit_codes.describe(130) == "exit code 130 (interrupted)"
    assert exit_codes.describe(3) == "exit code 3"
    assert exit_codes.from_returncode(76) == 76
