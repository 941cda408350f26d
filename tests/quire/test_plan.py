"""`quire plan`: what people get for sizes, folders, the demo model, nodes, and mistakes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from quire.cli import main

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "torch_dtype": "bfloat16",
}


def plan(*arguments: str) -> int | str | None:
    try:
        return main(["plan", *arguments])
    except SystemExit as ended:
        return ended.code


def folder_of(tmp_path: Path, **changes: Any) -> str:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | changes))
    return str(tmp_path)


def node(name: str, product: str, num_gpus: int) -> dict[str, Any]:
    return {
        "kind": "Node",
        "metadata": {"name": name, "labels": {"nvidia.com/gpu.product": product}},
        "status": {
            "allocatable": {"nvidia.com/gpu": str(num_gpus)},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def test_a_folder_is_planned_by_its_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(folder_of(tmp_path), "--gpu", "H200", "--tp", "2") == 0

    text = capsys.readouterr().out
    assert "8.19 billion parameters, bfloat16, 15.3 GiB of weights (16.4 GB), 144 KiB" in text
    assert "tensor-parallel sizes that divide its heads: 1, 2, 4, 8\n" in text
    assert "2x NVIDIA-H200 with 140.4 GiB, GiB on each:\n  weights             7.6\n" in text
    assert "requests of 40960 tokens" in text


def test_json_has_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(folder_of(tmp_path), "--gpu", "a10", "--tp=1", "--max-model-len=32k", "--json") == 1

    report = json.loads(capsys.readouterr().out)
    [found] = report["plans"]
    assert report["model"]["parameters"] == 8190735360
    assert found["kv_bytes_per_token"] == report["model"]["kv_bytes_per_token"] == 147456
    assert found["weight_bytes"] == report["model"]["weight_bytes"] == 2 * 8190735360
    assert found["max_model_len"] == 32768
    assert not found["fits"]
    assert found["needed_gpu_bytes"] - found["gpu_bytes"] == found["short_bytes"] > 0


def test_the_demo_model_is_known_without_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--gpu", "L4") == 0

    assert "SmolLM2-135M-Instruct: 134.5 million parameters" in capsys.readouterr().out


def test_a_size_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("70B") == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("70B: 70.00 billion parameters, bfloat16, 130.4 GiB")
    assert "note: estimated from the size alone" in lines
    assert any(line.startswith("H200 ") and line.split()[1] == "2" for line in lines)
    assert lines[-1] == "too small, even 8 of them: V100-16GB, T4"


def test_one_gpu_lists_every_size_that_divides_the_heads(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert plan("70B", "--gpu", "H100") == 0

    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "H100" in line]
    assert [row[1] for row in rows] == ["1", "2", "4", "8"]


def test_what_does_not_fit_ends_with_1_and_says_by_how_much(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert plan("70B", "--gpu", "A10", "--tp", "2") == 1

    text = capsys.readouterr().out
    assert "does not fit: needs 75.2 GiB on each GPU; short 52.7 GiB" in text
    assert "warning: NVLink joins none of 2 A10" in text


def test_an_unreachable_name_with_a_size_is_estimated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    assert plan("nobody/Nothing-8B-AWQ", "--gpu", "L4", "--tp", "1") == 0

    text = capsys.readouterr().out
    assert "8.00 billion parameters, awq 4-bit" in text
    assert "note: estimated from the name, since nobody/Nothing-8B-AWQ is not in" in text


def test_an_architecture_that_the_engine_does_not_run_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(folder_of(tmp_path, architectures=["NewForCausalLM"]), "--gpu", "H100") == 0

    assert "note: the engine does not run NewForCausalLM; it runs " in capsys.readouterr().out


def test_a_quantization_that_the_engine_does_not_run_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    awq = {"quant_method": "awq", "bits": 4, "group_size": 128}

    assert plan(folder_of(tmp_path, quantization_config=awq), "--gpu", "L4") == 0

    text = capsys.readouterr().out
    assert "awq 4-bit, 5." in text or "awq 4-bit, 6." in text
    assert "note: the engine does not run it: quantization 'awq' is not supported" in text


def test_every_node_of_a_cluster_is_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [node("node-1", "NVIDIA-H100-80GB-HBM3", 8), node("node-3", "NVIDIA-L40S", 2)]
    file = tmp_path / "nodes.json"
    file.write_text(json.dumps({"kind": "List", "items": items}))

    assert plan("70B", "--tp", "2", "--nodes", str(file)) == 0
    with file.open() as lines:
        monkeypatch.setattr(sys, "stdin", lines)
        assert plan("70B", "--tp", "2", "--replicas", "5", "--nodes", "-") == 1

    text = capsys.readouterr().out
    assert "  node-1  has 8x NVIDIA-H100-80GB-HBM3 with 79.6 GiB: room for 4 pods\n" in text
    assert "  node-3  has NVIDIA-L40S without NVLink\n" in text
    assert "with room for 4 replicas were they empty, and 5 are wanted" in text


def test_nodes_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "nodes.json"
    file.write_text(json.dumps({"items": [node("node-3", "NVIDIA-A10", 2)]}))

    assert plan("70B", "--nodes", str(file), "--json") == 1

    nodes = json.loads(capsys.readouterr().out)["nodes"]
    assert nodes["reason"] == "VRAMTooSmall"
    assert nodes["verdicts"][0]["message"].startswith("needs 14")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("8B --gpu H2000", "GPU 'H2000' is not known; did you mean H200?"),
        ("8B --tp 3", "32 attention heads and 8 key/value heads; 1, 2, 4 and 8 do"),
        ("8B --tp 0", "tensor_parallel_size must be at least 1, not 0"),
        ("8B --gpu-memory-utilization 90", "gpu_memory_utilization must be in (0, 1], not 90.0"),
        ("8B --max-model-len 0", "max_model_len must be at least 1, not 0"),
        ("8B --quantization q9", "invalid choice: 'q9'"),
        ("8B --gpus H200", "unknown flag: --gpus; did you mean --gpu?"),
        ("/no/such/folder", "no such file or directory: /no/such/folder"),
        ("8B --nodes /no/such/file", "cannot read nodes from /no/such/file"),
    ],
)
def test_a_wrong_value_ends_with_2_and_a_hint(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(*arguments.split()) == 2

    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("text", ["[]", '{"kind": "Pod"}', "not json"])
def test_what_is_no_list_of_nodes_is_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "nodes.json"
    file.write_text(text)

    assert plan("8B", "--nodes", str(file)) == 2

    assert str(file) in capsys.readouterr().err


def test_a_config_that_lacks_something_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(folder_of(tmp_path, hidden_size=None)) == 2

    assert "the model's config has no 'hidden_size'" in capsys.readouterr().err


def test_a_length_beyond_the_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(folder_of(tmp_path), "--max-model-len", "64k") == 2

    message = "max_model_len=65536 is more than the model's 40960 tokens"
    assert message in capsys.readouterr().err
