from vmae_jax.data.prepared.progress import readable_bytes, reported

RESULTS = [{"record": bytes(1500)}, {"bad": {}}, {"record": bytes(1500)}, {"bad": {}}]


def test_progress_says_rate_and_time_left():
    times, lines = iter([0.0, 2.0, 12.0, 13.0, 20.0]), []
    assert list(reported(iter(RESULTS), 5, lines.append, lambda: next(times))) == RESULTS
    assert lines == ["2 of 5 videos, 1 bad, 1.5 kB, 0.2 videos/s, 0:00:18 left"]
    assert [readable_bytes(x) for x in (0, 999, 1000, 2.5e9, 3e15)] == [
        *("0 B", "999 B", "1.0 kB", "2.5 GB"),
        "3000.0 TB",
    ]


def test_the_last_line_counts_all():
    times, lines = iter([0.0, 0.5, 1.0, 1.5, 2.0]), []
    list(reported(iter(RESULTS), 4, lines.append, lambda: next(times)))
    assert lines == ["4 of 4 videos, 2 bad, 3.0 kB, 2.0 videos/s, 0:00:00 left"]
