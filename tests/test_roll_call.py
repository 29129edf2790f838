"""Who is there, before JAX connects the processes of a run; they are threads here."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest
from process_group import free_port

from vmae_jax.processes import roll_call
from vmae_jax.processes.roll_call import MissingProcesses, Place, call_roll


def call_in_threads(facts, *, timeout=10, indices=None):
    """What each of the processes gets or raises."""
    address, answers = f"127.0.0.1:{free_port()}", {}

    def call(index):
        try:
            answers[index] = call_roll(Place(address, len(facts), index), facts[index], timeout)
        except Exception as error:
            answers[index] = error

    indices = range(len(facts)) if indices is None else indices
    threads = [threading.Thread(target=call, args=(index,)) for index in indices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_all_hosts_are_told_to_all():
    hosts = [socket.gethostname()] * 5
    assert call_in_threads([{"jax": "1"}] * 5) == dict.fromkeys(range(5), hosts)


def test_different_versions_are_named_everywhere():
    answers = call_in_threads([{"jax": "1", "python": "3"}] * 2 + [{"jax": "2", "python": "3"}])
    for answer in answers.values():
        assert isinstance(answer, ValueError)
        assert "jax is 1 in process 0 (host" in str(answer)
        assert "2 in process 2 (host" in str(answer)
        assert "python" not in str(answer)


def test_missing_processes_are_named_everywhere():
    began = time.monotonic()
    answers = call_in_threads([{}] * 5, timeout=2, indices=[0, 1, 3])
    assert time.monotonic() - began < 30
    for answer in answers.values():
        assert isinstance(answer, MissingProcesses)
        assert "num_processes=5, process 2, 4 did not come to 127.0.0.1:" in str(answer)


def test_a_missing_first_process_is_named():
    (answer,) = call_in_threads([{}] * 2, timeout=1, indices=[1]).values()
    assert isinstance(answer, MissingProcesses)
    assert "process 0 did not come" in str(answer)


def test_indices_taken_twice_are_refused():
    answers = call_in_threads([{}] * 3, timeout=3, indices=[0, 1, 1])
    assert "process_index=1 came twice, from host" in str(answers[0])


def test_strangers_and_those_that_leave_do_not_count():
    place = Place(f"127.0.0.1:{free_port()}", 3, 0)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(_error_of(place, 2)))
    thread.start()
    time.sleep(0.5)
    port = int(place.address.split(":")[1])
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")  # JAX's client of an earlier start
    with socket.create_connection(("127.0.0.1", port)) as gone:
        gone.sendall(json.dumps({"index": 1, "host": "a", "pid": 1, "facts": {}}).encode() + b"\n")
        time.sleep(0.2)
    thread.join()
    assert "process 1, 2 did not come" in answers[0]


def _error_of(place, timeout):
    with pytest.raises(MissingProcesses) as error:
        call_roll(place, {}, timeout)
    return str(error.value)


def test_addresses_are_split():
    assert roll_call.split_address("node-1.job:80") == ("node-1.job", 80)
    assert roll_call.split_address("[::1]:80") == ("::1", 80)
