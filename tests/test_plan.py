"""`python -m vmae_jax plan`, with the real TPU compiler and with XLA's for CPUs."""

from __future__ import annotations

import importlib.util
import json

import collective_classes
import pytest

from vmae_jax import __main__
from vmae_jax.plan import ahead_of_time, chips, plan_text, planning

# Small, but large enough for fsdp to split something: one block of each, of 8 and 4 heads.
TINY = {
    "model.image_size": (32, 32),
    "model.num_frames": 4,
    "model.patch_size": 8,
    "model.hidden_size": 512,
    "model.num_hidden_layers": 3,
    "model.num_attention_heads": 8,
    "model.intermediate_size": 1024,
    "model.decoder_hidden_size": 128,
    "model.decoder_num_hidden_layers": 2,
    "model.decoder_num_attention_heads": 4,
    "model.decoder_intermediate_size": 256,
    "pretraining.mask_ratio": 0.75,
    "data.batch_size": 8,
    "schedule.num_steps": 1000,
    "schedule.warmup_steps": 10,
    "compute.remat": "attention",
}
# numbers in the matrices of an encoder's block: qkv, output, and those of the MLP
NUM_LARGE = 512 * (3 * 512 + 512 + 2 * 1024)


def plan(topology, file, *options, config="configs/default.py", **changes):
    """The exit code of the command, and what it wrote."""
    overrides = [f"--config.{name}={value}" for name, value in (TINY | changes).items()]
    arguments = [f"--config={config}", f"--topology={topology}", f"--json={file}", *options]
    code = __main__.main(["plan", *arguments, *overrides])
    return code, json.loads(file.read_text()) if file.exists() else None


def plan_with_flows(topology, folder, **changes):
    """What the command wrote, and what the collectives of the program carry."""
    file = folder / "program.txt"
    code, found = plan(topology, folder / "plan.json", f"--program={file}", **changes)
    assert code == 0
    shapes = collective_classes.parameter_shapes(found["config"], found["overrides"])
    text = file.read_text()
    return found, collective_classes.of_program(text, shapes, found["facts"]["mesh"])


@pytest.fixture(scope="module")
def on_v5e(tmp_path_factory):
    """A step on four v5e chips, data 2 x fsdp 2, by the real compiler."""
    return plan_with_flows("v5e:2x2", tmp_path_factory.mktemp("plan"), **{"mesh.fsdp": 2})


@pytest.fixture(scope="module")
def v5e(on_v5e):
    return on_v5e[0]


def test_the_tpu_compiler_says_what_fits(v5e):
    facts = v5e["facts"]
    assert (v5e["status"], v5e["fits"], v5e["num_chips"]) == ("ok", True, 4)
    assert facts["device_kind"] == "TPU v5 lite"
    assert facts["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    assert (facts["clips_per_device"], facts["num_steps"]) == (2, 1000)
    memory, state = facts["memory"], facts["state_bytes"]
    # arguments are state and batch, as the compiler lays them out: in whole tiles
    exact = sum(state.values()) + facts["batch_bytes"]
    assert exact <= memory["argument"] <= 1.3 * exact
    assert state["opt_state"] == pytest.approx(2 * state["params"], rel=1e-3)
    assert memory["argument"] < memory["peak"] < v5e["usable_bytes"]
    assert memory["alias"] > 0.9 * memory["argument"] - facts["batch_bytes"]  # it is donated


def test_only_parameters_gradients_and_scalars_travel_without_tensor(on_v5e):
    found, flows = on_v5e
    assert collective_classes.faults(flows) == []
    assert all(flow.times is not None for flow in flows)
    carried = {what: x["bytes"] for what, x in collective_classes.totals(flows).items()}
    assert set(carried) == {"parameters", "gradients", "scalars"}
    # every parameter's gradient travels at least once, in bf16 or fp32; large ones twice (fsdp,
    # then data)
    numbers = found["facts"]["parameters"]
    assert 2 * numbers <= carried["gradients"] <= 2 * 4 * numbers
    # kernels from 1 MiB on are gathered forward and backward, and nothing of the small decoder
    large = [flow for flow in flows if flow.what == "parameters"]
    assert {flow.kind for flow in large} == {"all-gather"}
    assert {flow.times for flow in large} <= {1, TINY["model.num_hidden_layers"]}
    assert all(flow.axes == ("fsdp",) for flow in large)
    assert any("sharding.py" in flow.source for flow in large)


def test_the_network_has_to_carry_all_that_travels(on_v5e):
    found, flows = on_v5e
    rows = found["facts"]["collectives"]
    assert all(row["times"] is not None for row in rows)  # or its time would not be known
    total = sum(row["num_bytes"] * row["times"] for row in rows)
    assert total == sum(flow.num_bytes * flow.times for flow in flows)
    # each large kernel is gathered in every layer, forward and backward, in bf16
    assert total > 2 * TINY["model.num_hidden_layers"] * NUM_LARGE * 2
    # a gather passes half of what it makes among two, a sum all of it
    link = chips.CHIPS["v5e"].link
    assert total / 2 / link <= found["roofline"]["seconds"]["slice"] <= 2 * total / link


def test_the_report_is_a_table(v5e):
    text = plan_text.text(v5e)
    for part in ("v5e:2x2 (4 devices)", "mesh: data 2, fsdp 2", "15.75  fits", "all-gather"):
        assert part in text, part
    assert "of peak at most" in text
    assert "run: 1,000 steps" in text
    assert "not known" not in text


def test_what_is_not_known_is_said(v5e):
    facts = v5e["facts"]
    loop = {**facts["collectives"][0], "times": None}
    for collectives, unread, words in (
        ([loop], "", "not known, as they are in loops of unknown length"),
        (None, "no such form", "network: not known, the program could not be read: no such form"),
    ):
        changed = {**facts, "collectives": collectives, "unread": unread, "frozen_bytes": 2**29}
        outcome = planning.Outcome("ok", changed, "", None)
        report = planning.report(chips.topology("v5e:2x2"), v5e["config"], [], outcome)
        text = plan_text.text(report)
        assert words in text
        assert "frozen parameters 0.50" in " ".join(text.split())
        assert "network in a slice not known" in text
        assert "step and run: not known" in text
        assert "fits" in text  # memory is known all the same


def test_gpus_are_estimated_without_one(tmp_path, capsys):
    changes = {"mesh.fsdp": 2, "mesh.tensor": 2, "compute.attention": "cudnn"}
    found, flows = plan_with_flows("h200:4", tmp_path, **changes)
    assert found["fits"] is True
    assert found["usable_bytes"] == chips.CHIPS["h200"].memory
    assert found["facts"]["attention"] == "cudnn"
    assert 0 < found["roofline"]["mfu"][0] < 1
    assert collective_classes.faults(flows) == []
    assert set(collective_classes.totals(flows)) == {
        "parameters", "gradients", "scalars", "activations"
    }  # fmt: skip
    assert "the peak is an estimate" in capsys.readouterr().out


def test_what_cannot_work_is_refused_in_the_words_of_the_run(tmp_path, capsys):
    code, found = plan("cpu:4", tmp_path / "x.json", **{"mesh.fsdp": 3})
    assert code == 1
    assert found["status"] == "refused"
    assert "mesh.fsdp=3" in capsys.readouterr().err
    code, _ = plan("cpu:4", tmp_path / "x.json", **{"data.batch_size": 6})
    assert code == 1
    assert "data.batch_size=6 is not a positive multiple of the 4 ways" in capsys.readouterr().err


def test_the_process_that_compiles_loads_the_recipe_itself(tmp_path, monkeypatch, capsys):
    # what it is made of is found there as it is here, also a module of the recipe's own
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "a_neighbour.py").write_text("WAYS = 3\n")
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "import a_neighbour\n"
        "from configs import default\n"
        "def get_config():\n"
        "    config = default.get_config()\n"
        "    config.mesh.fsdp = a_neighbour.WAYS\n"
        "    return config\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "modules")
    code, found = plan("cpu:4", tmp_path / "x.json", config=recipe)
    assert (code, found["status"]) == (1, "refused")
    assert "mesh.fsdp=3" in capsys.readouterr().err


def test_a_bug_while_compiling_keeps_its_traceback(tmp_path, monkeypatch):
    def facts(config, machine):
        raise TypeError("dot_general requires contracting dimensions to match")

    monkeypatch.setattr(ahead_of_time, "facts", facts)
    output = tmp_path / "facts.json"
    arguments = ["--topology=cpu:1", "--config=configs/default.py", f"--output={output}"]
    assert ahead_of_time.main(arguments) == 0
    found = planning.outcome(json.loads(output.read_text()), 0, "")
    assert found.status == "error"
    monkeypatch.setattr(planning, "compile_step", lambda *_: found)
    with pytest.raises(RuntimeError, match=r"(?s)Traceback .* in facts.*contracting dimensions"):
        plan("cpu:1", tmp_path / "x.json")


def test_a_program_that_cannot_be_read_leaves_the_network_unknown():
    found = ahead_of_time.network("hello", chips.topology("cpu:4"))
    assert found["collectives"] is None
    assert "has no ENTRY" in found["unread"]


def test_a_compiler_that_dies_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    found = planning.outcome({}, -11, "the last words")
    monkeypatch.setattr(planning, "compile_step", lambda *_: found)
    code, _ = plan("cpu:1", tmp_path / "x.json")
    assert code == 1
    assert "error: crashed: the compiler ended with SIGSEGV" in capsys.readouterr().err


def test_a_program_is_of_one_compilation(tmp_path, capsys):
    code, _ = plan("v5e:2x2", tmp_path / "x.json", "--find-batch", "--program=p.txt")
    assert code == 1
    assert "--program is of one compilation" in capsys.readouterr().err


def test_without_the_tpu_compiler_it_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _ = plan("v5e:2x2", tmp_path / "x.json")
    assert code == 1
    assert "pip install 'vmae_jax[plan]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"data.bach_size": 3}, 'Did you mean "batch_size"'), ({"mesh.fsdp": "x"}, "invalid literal")],
)
def test_a_wrong_override_is_refused_before_anything_is_compiled(
    changes, message, tmp_path, capsys
):
    code, _ = plan("cpu:4", tmp_path / "x.json", **changes)
    assert code == 1
    assert message in capsys.readouterr().err


def test_an_unknown_machine_is_refused_before_anything_is_compiled(tmp_path, capsys):
    code, _ = plan("v9:2x2", tmp_path / "x.json")
    assert code == 1
    assert "known are" in capsys.readouterr().err


def test_the_environment_of_the_compiler():
    tpu = ahead_of_time.environment(chips.topology("v5p:2x2x1", 2))
    assert (tpu["JAX_PLATFORMS"], tpu["TPU_ACCELERATOR_TYPE"]) == ("cpu", "v5p-8")
    cpu = ahead_of_time.environment(chips.topology("h200:8", 2))
    assert cpu["JAX_NUM_CPU_DEVICES"] == "16"
    # a flag that the installed compiler does not know would end the process
    assert tpu["XLA_FLAGS"] == cpu["XLA_FLAGS"] == ""
