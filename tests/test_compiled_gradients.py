"""A sample of the shapes of `compiled_gradients`, whose own command runs them all."""

import subprocess
import sys

import compiled_gradients


def test_a_sample_of_odd_shapes_has_the_gradients_of_torch():
    found = compiled_gradients.run(compiled_gradients.sample(4))
    assert set(found.values()) == {""}, found


def test_the_list_is_long_and_without_twins():
    shapes = compiled_gradients.SHAPES
    assert len(set(shapes)) == len(shapes) >= 40


def test_a_child_that_ends_early_is_told_and_the_rest_goes_on(monkeypatch):
    script = """if True:
        import json, os, sys
        for place in map(int, sys.argv[1:]):
            if place == 5:
                sys.exit("no compiler today")
            print(json.dumps([place, ""]), flush=True)
    """
    start = subprocess.Popen

    def run(command, **options):
        places = command[command.index("--child") + 1 :]
        return start([sys.executable, "-c", script, *places], **options)

    monkeypatch.setattr(subprocess, "Popen", run)
    found = compiled_gradients.run([2, 5, 7])
    assert found[2] == found[7] == ""
    assert found[5] == "ends its process (1): no compiler today\n"
