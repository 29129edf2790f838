"""Pushing to a hub on this machine, and what stands in for it when it cannot be reached.

In a process of its own, because huggingface_hub reads its environment when it is imported.
"""

from __future__ import annotations

import json
import re

import hub_server
import pytest
from original_files import run_python

PUSH = """
import sys
import vmae_jax

config = vmae_jax.VideoMAEConfig(
    image_size=16, patch_size=8, num_frames=4, hidden_size=16, num_hidden_layers=1,
    num_attention_heads=2, intermediate_size=24, decoder_hidden_size=8,
    decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=16,
    id2label={0: "run", 1: "sit", 2: "stand"},
)
processor = vmae_jax.VideoMAEImageProcessor(image_mean=0.25)
"""


@pytest.fixture
def hub():
    with hub_server.running() as server:
        server.writers = {"hf_mine": "org"}
        yield server


@pytest.fixture
def run(hub, tmp_path):
    """Runs Python against the hub; what it printed, or the last line of its traceback."""

    def run(script, **environment):
        environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_mine", **environment}
        found = run_python(["-c", PUSH + script], tmp_path, **environment)
        return found.stdout if found.returncode == 0 else found.stderr.strip().splitlines()[-1]

    return run


def files(hub, repo_id, revision="main"):
    found = hub.repositories[repo_id]
    return found.commits[found.refs[revision]]


def test_a_model_that_is_pushed_is_the_model_that_is_loaded(hub, run):
    printed = run("""
import numpy as np
model = vmae_jax.VideoMAEForVideoClassification(config)
print(model.push_to_hub("org/name"))
pixels = np.random.default_rng(0).standard_normal((1, 4, 3, 16, 16)).astype(np.float32)
again = vmae_jax.VideoMAEForVideoClassification.from_pretrained("org/name")
assert np.array_equal(again(pixels).logits, model(pixels).logits)
print(again.config.id2label[2], vmae_jax.VideoMAEConfig.from_pretrained("org/name").hidden_size)
print(vmae_jax.VideoMAEImageProcessor.from_pretrained("org/name").crop_size["height"])
""")
    address, *others = printed.split()
    assert address.startswith(f"{hub.url}/org/name/commit/")
    assert others == ["stand", "16", "16"]
    assert set(files(hub, "org/name")) == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }


def test_a_configuration_and_a_processor_are_pushed_each_by_itself(hub, run):
    printed = run("""
config.push_to_hub("org/name", commit_message="Better sizes", private=True)
processor.push_to_hub("org/name", revision="v2")
config.push_to_hub("alone")          # in the namespace of the token
processor.save_pretrained("beside", push_to_hub=True)
processor.save_pretrained("elsewhere", push_to_hub=True, repo_id="org/third", create_pr=True)
config.save_pretrained("folder")     # is not pushed
model = vmae_jax.VideoMAEModel(config)
model.save_pretrained("model", max_shard_size="2KB", push_to_hub=True, repo_id="org/sharded")
assert vmae_jax.VideoMAEConfig.from_pretrained("org/name") == config
""")
    assert printed == ""
    assert json.loads(files(hub, "org/name")["config.json"])["hidden_size"] == 16
    assert set(files(hub, "org/name")) == {"config.json"}
    assert set(files(hub, "org/name", "v2")) == {"config.json", "preprocessor_config.json"}
    assert set(files(hub, "org/alone")) == {"config.json"}
    assert set(files(hub, "org/beside")) == {"preprocessor_config.json"}
    assert set(files(hub, "org/third")) == set()
    assert set(files(hub, "org/third", "refs/pr/1")) == {"preprocessor_config.json"}
    assert "model.safetensors.index.json" in files(hub, "org/sharded")
    assert "org/folder" not in hub.repositories


@pytest.mark.parametrize(
    ("call", "environment", "error"),
    [
        ("config.push_to_hub('org/name')", {"HF_TOKEN": ""}, r"PermissionError: .*status 401"),
        ("config.push_to_hub('org/name', token='hf_other')", {}, "PermissionError: .*status 401"),
        ("config.push_to_hub('other/name')", {}, "PermissionError: .*'other/name'.*status 403"),
        ("config.push_to_hub('org/name')", {"HF_HUB_OFFLINE": "1"}, "ConnectionError: .*OFFLINE"),
        (
            "config.push_to_hub('org/name')",
            {"HF_ENDPOINT": "http://127.0.0.1:9"},
            "ConnectionError: .*cannot be reached.*`hf upload`",
        ),
        ("config.push_to_hub('a/b/c')", {}, "SettingError: repo_id='a/b/c' cannot be an id"),
        (
            "config.save_pretrained('folder', repo_id='org/name')",
            {},
            "SettingError: repo_id is no option of save_pretrained; .*with push_to_hub=True",
        ),
        ("processor.push_to_hub('org/name', tags=[])", {}, "SettingError: tags is no option"),
    ],
    ids=["no token", "bad token", "no rights", "offline", "unreachable", "no id", "option", "tags"],
)
def test_what_cannot_be_pushed_says_why(call, environment, error, hub, run):
    line = run(call, **environment)
    assert re.search(error, line), line
    assert not hub.repositories


def test_a_hub_that_is_broken_is_named_with_what_to_do(hub, run):
    hub.broken = True
    line = run("config.push_to_hub('org/name')")
    assert "status 500" in line
    assert "`hf upload`" in line


def test_a_model_that_cannot_be_saved_makes_no_repository(hub, run):
    line = run("vmae_jax.VideoMAEModel(config).push_to_hub('org/name', max_shard_size='0MB')")
    assert "max_shard_size='0MB' must be" in line
    assert not hub.repositories
