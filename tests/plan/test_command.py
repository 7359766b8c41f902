"""`t2g plan` where nothing is compiled, its page, and what is said when it cannot be done."""

import dataclasses
import importlib.util
import io
import json
import math
import re
from pathlib import Path

import jax
import pytest
import rich.console
import tiny

from t2g_jax import cli
from t2g_jax.config import Config, load_config
from t2g_jax.errors import T2GError
from t2g_jax.models import families
from t2g_jax.parallel.shapes import round_up
from t2g_jax.parallel.sharding import make_mesh
from t2g_jax.plan import command, page, programs, table
from t2g_jax.plan.advice import advise
from t2g_jax.plan.measure import from_json, to_json
from t2g_jax.plan.topologies import GIB, topology

PLANS = sorted((Path(__file__).parents[2] / "configs" / "plans").glob("*.yaml"))

SMALL = """\
methods: [text2grad, rltf-sd]
model: {layers: 2, width: 64, heads: 4, kv_heads: 2, mlp_width: 128, context_length: 128}
mesh: {data: 2, fsdp: -1}
sampling: {max_new_tokens: 32}
sft: {batch_size: 16, micro_batches: 2}
reward_model: {batch_size: 16}
text2grad: {kl: full}
rltf_sd: {kl_coefficient: 0.01}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def plan(config):
    """The plan for eight GPUs that are not here, as `--json` has it, and what was printed."""
    file = config.parent / "plan.json"
    arguments = ["plan", str(config), "--topology", "h200-8", "--json", str(file)]
    assert cli.main(arguments) == 0
    return json.loads(file.read_text())


def test_every_function_of_every_phase(plan):
    assert [(p["phase"], p["name"]) for p in plan["programs"]] == [
        ("sft", "update"),
        ("annotate", "sample"),
        ("reward_model", "update"),
        ("reward_model", "span scoring"),
        ("text2grad", "sample"),
        ("text2grad", "score (policy)"),
        ("text2grad", "span scoring"),
        ("text2grad", "update"),
        ("rltf-sd", "sample"),
        ("rltf-sd", "score (reference)"),
        ("rltf-sd", "update"),
        ("evaluate", "sample"),
    ]
    assert (plan["topology"], plan["chips"], plan["fits"]) == ("h200-8", 8, True)
    assert plan["mesh"] == {"data": 2, "fsdp": 4, "context": 1, "tensor": 1}
    for need in plan["programs"]:
        assert need["basis"] == "counted"
        assert need["total"] == pytest.approx(sum(need["memory"].values()))
        slowest = max(need[f"{what}_seconds"] for what in ("compute", "memory", "network"))
        assert need["seconds"] == slowest > 0
        assert 0 < need["mfu"] <= 1


def test_memory_of_what_is_kept(config):
    """Bytes on a device, from the shapes and shardings of the state that training makes."""
    config = load_config(config)
    mesh = make_mesh(config.mesh)
    found = {(p.phase, p.name): p for p in programs.programs(config, mesh)}
    sft, text2grad = found["sft", "update"], found["text2grad", "update"]
    weights = sft.inputs["weights"]
    whole = 512 * 64 + 64 + 2 * (2 * 64 + 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
    # Over four devices; norms are whole on each.
    assert weights == 4 * ((whole - 5 * 64) / 4 + 5 * 64)
    assert sft.inputs["optimizer"] == pytest.approx(2 * weights, rel=0.01)
    assert sft.inside["gradients"] == 2 * weights  # those of a micro-batch, and their sum
    assert sft.resident == {}
    assert sft.shape == "2 × [8, 128]"
    # The reference, with a value head of its own, and the reward model.
    assert text2grad.resident["kept beside"] == pytest.approx(2 * weights, rel=0.02)
    assert found["text2grad", "score (policy)"].inputs["reference"] == pytest.approx(
        weights, rel=0.02
    )
    # While it samples, the optimizer's state waits.
    waiting = found["text2grad", "sample"].resident["kept beside"]
    assert waiting == pytest.approx(4 * weights, rel=0.02)


def test_with_adapters_there_is_one_copy(config):
    config = load_config(config)
    config = tiny.with_values(config, lora=dataclasses.replace(config.lora, rank=2))
    found = {(p.phase, p.name): p for p in programs.programs(config, make_mesh(config.mesh))}
    update = found["text2grad", "update"]
    weights = found["sft", "update"].inputs["weights"]
    assert update.inputs["weights"] == pytest.approx(weights, rel=0.2)
    assert update.inputs["optimizer"] < 0.3 * weights
    assert update.resident.get("kept beside", 0) < 0.2 * weights


def test_one_phase(config):
    config = load_config(config)
    mesh = make_mesh(config.mesh)
    assert [p.name for p in programs.programs(config, mesh, "evaluate")] == ["sample"]
    with pytest.raises(T2GError, match="--only ppo: the phases of this config are sft, annotate"):
        list(programs.programs(config, mesh, "ppo"))


def test_what_to_change(plan):
    """For each way to need too much, the settings that this config really has."""
    where = topology("h200-8")
    config = tiny.with_values(Config(name="big"), rltf_sd__micro_batches=2)

    def advice(name, config=config, phase="rltf-sd", mesh=None):
        found = next(p for p in plan["programs"] if (p["phase"], p["name"]) == (phase, name))
        need = dataclasses.replace(from_json(found), fits=False)
        return advise(need, config, where, mesh or plan["mesh"]).advice

    update = advice("update")
    assert update[0] == "model.remat: full"
    assert any(line.startswith("rltf_sd.micro_batches: ") for line in update)
    assert any("rltf_sd.optimizer.rounding: stochastic" in line for line in update)
    assert any("rltf_sd.optimizer.name: adafactor" in line for line in update)
    assert any("lora.rank: 16" in line for line in update)
    assert any("mesh: {data: 1, fsdp: 8}" in line for line in update)
    assert any("model.compute_dtype: bfloat16" in line for line in update)
    narrow = tiny.with_values(config, model__remat="full", model__param_dtype="bfloat16")
    assert "rltf_sd.optimizer.rounding: stochastic (no float32 copy of the weights)" in advice(
        "update", narrow
    )
    assert any("rltf_sd.rows_at_once: 64" in line for line in advice("sample"))
    assert any("evaluate.batch_size: 100" in line for line in advice("sample", phase="evaluate"))
    assert any("rltf_sd.rows_at_once: 64" in line for line in advice("score (reference)"))
    fitting = from_json(plan["programs"][0])
    assert advise(fitting, config, where, plan["mesh"]) is fitting
    assert from_json(to_json(fitting)) == fitting


def test_advice_says_how_much_less(plan):
    """What grows with the rows is to become what there is room for."""
    config = tiny.with_values(Config(name="big"), model__remat="full", rltf_sd__micro_batches=2)
    where = topology("h200-1")
    mesh = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}

    def advice(name, shape, **memory):
        found = next(p for p in plan["programs"] if (p["phase"], p["name"]) == ("rltf-sd", name))
        memory |= {"weights": where.chip.memory - 10.0}
        need = dataclasses.replace(
            from_json(found), shape=shape, memory=memory, total=sum(memory.values()), fits=False
        )
        need = dataclasses.replace(need, available=where.chip.memory)
        return advise(need, config, where, mesh).advice

    assert "rltf_sd.micro_batches: 16" in advice("update", "2 × [64, 128]", temporaries=70.0)
    assert "rltf_sd.micro_batches: 128" in advice("update", "2 × [64, 128]", temporaries=7000.0)
    much = {"temporaries": 20.0, "KV cache": 20.0}
    assert advice("sample", "[64, 96 + 32]", **much)[0] == (
        "rltf_sd.rows_at_once: 16 (fewer rows at once)"
    )
    # One chip has no tensor axis; fewer rows do not help where weights alone are too large.
    assert not any("tensor" in line for line in advice("sample", "[64, 96 + 32]", **much))
    beside = advice("sample", "[64, 96 + 32]", **much, **{"kept beside": 11.0})
    assert not any("rows_at_once" in line for line in beside)
    assert any("model.param_dtype: bfloat16" in line for line in beside)


def test_evaluation_samples_each_prompt_several_times(config):
    asked = {"evaluate__batch_size": 3, "evaluate__samples_per_prompt": 5, "task__test_size": 40}
    config = tiny.with_values(load_config(config), mesh__data=1, mesh__fsdp=1, **asked)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    (found,) = programs.programs(config, mesh, "evaluate")
    assert found.shape.startswith(f"[{round_up(15)}, ")
    few = tiny.with_values(config, task__test_size=1)
    (found,) = programs.programs(few, mesh, "evaluate")
    assert found.shape.startswith(f"[{round_up(5)}, ")


@pytest.mark.parametrize("terminal", [False, True])
def test_tables_fit_80_columns(plan, terminal):
    needs = [from_json(need) for need in plan["programs"]]
    large = dict.fromkeys(table.KINDS, 700 * GIB)
    needs += [dataclasses.replace(n, phase="grpo-multiturn", memory=large) for n in needs]
    console = rich.console.Console(
        file=io.StringIO(), width=80, force_terminal=terminal, color_system=None, highlight=False
    )
    table.show(console, needs, topology("h200-8"), "small on h200-8")
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    # Nothing is cut: each function with its rows, every number whole.
    assert "…" not in text
    for need in needs:
        assert need.name in text
        assert re.sub(r"\s", "", need.shape) in re.sub(r"\s", "", text)
        assert f"{need.total / GIB:.2f}" in text


def test_what_does_not_fit_is_said(config, tmp_path, capsys):
    file = tmp_path / "plan.json"
    arguments = ["--topology", "l4-8", "--only", "evaluate", "--json", str(file)]
    large = "--model.width 8192 --model.layers 80 --model.heads 64 --model.kv_heads 64".split()
    assert cli.main(["plan", str(config), *arguments, *large]) == 0
    said = capsys.readouterr().out
    assert "evaluate, sample: does not fit" in said
    assert "try mesh: {data: 1, fsdp: 8}" in said
    assert json.loads(file.read_text())["fits"] is False


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "plan needs --topology"),
        (["--topology", "v5e-17"], "there is no plan for such a slice"),
        (["--topology", "h200-3"], "mesh data=2, fsdp=-1, context=1, tensor=1 needs a multiple"),
        (["--topology", "h200-8", "--only", "grpo"], "the phases of this config are sft"),
        (
            ["--topology", "v5e-256", "--only", "sft", "--json", "/nowhere/plan.json"],
            "--json /nowhere/plan.json: No such folder: /nowhere",
        ),
    ],
)
def test_what_cannot_be_planned(config, arguments, expected, capsys):
    assert cli.main(["plan", str(config), *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_without_libtpu(config, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["plan", str(config), "--topology", "v5e-8"]) == 2
    assert "pip install 't2g_jax[plan]'" in capsys.readouterr().err


def test_the_page(tmp_path):
    """Sections by name: one is replaced, another stays, and so does the text around."""
    file = tmp_path / "plans.md"
    file.write_text(f"Before.\n\n{page.MARKERS[0]}\n{page.MARKERS[1]}\n\nAfter.\n")
    page.put(file, "b", "### b\n\nold")
    page.put(file, "a", "### a\n\nfirst")
    page.put(file, "b", "### b\n\nnew")
    assert file.read_text() == (
        f"Before.\n\n{page.MARKERS[0]}\n\n### a\n\nfirst\n\n### b\n\nnew\n\n{page.MARKERS[1]}"
        "\n\nAfter.\n"
    )
    config = tmp_path / "small-l4-8.yaml"
    config.write_text(
        f"# A small one.\n{SMALL}sft: {{steps: 3}}\n".replace(
            "sft: {batch_size: 16, micro_batches: 2}\n", ""
        )
    )
    section = page.section(config)
    assert section.startswith("### small-l4-8\n\nA small one.\n\n`t2g plan ")
    assert section.count("\n|") == 2 + 12
    unnamed = tmp_path / "small.yaml"
    unnamed.write_text(SMALL)
    assert page.main([str(file), str(unnamed)]) == 2
    file.write_text("no markers")
    assert page.main([str(file), str(config)]) == 2


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_plans_of_the_repository(path, root, monkeypatch):
    """They load, are named after a topology, and their meshes fit it."""
    monkeypatch.chdir(root)
    config = load_config(path)
    assert config.name == path.stem
    where = topology("-".join(path.stem.split("-")[-2:]))
    fixed = math.prod(size for size in dataclasses.astuple(config.mesh) if size != -1)
    assert where.chips % fixed == 0
    assert families.read_config(Path(config.model.pretrained)).vocab_size > 100_000


def test_a_compiler_that_ends_says_so(config, monkeypatch):
    """As libtpu's does where a library is broken: the last line of what it wrote is shown."""
    environment = command._environment(topology("h200-8")) | {"JAX_PLATFORMS": "nothing"}
    monkeypatch.setattr(command, "_environment", lambda where: environment)
    with pytest.raises(T2GError, match=r"ended before it began \(exit status 1\): .*nothing"):
        command.measure_programs(load_config(config), topology("h200-8"))
