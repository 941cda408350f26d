"""Safetensors files are read into place by several threads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from quire_engine.errors import ConfigError
from quire_engine.model import weight_reading
from quire_engine.model.dummy_weights import make_dummy
from quire_engine.model.families import read_spec
from quire_engine.model.safetensors_file import SafetensorsFile
from quire_engine.model.share import WHOLE, Share
from quire_engine.model.spec import ModelSpec
from quire_engine.model.weight_places import WeightPlaces, assemble
from quire_engine.model.weight_reading import read_safetensors

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 41,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SPEC: ModelSpec = read_spec(CONFIG)


def tensors_of(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in make_dummy(SPEC, dtype, 0)}


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> list[Path]:
    names = sorted(tensors)
    files = [folder / "a.safetensors", folder / "b.safetensors"]
    for file, part in zip(files, (names[::2], names[1::2]), strict=True):
        save_file({name: tensors[name] for name in part}, file)
    return files


def read(
    files: list[Path], dtype: torch.dtype, device: str = "cpu", **options: Any
) -> dict[str, torch.Tensor]:
    places = WeightPlaces(SPEC, dtype, torch.device(device), **options)
    read_safetensors(files, places, device=torch.device(device), shows_progress=False)
    return places.finish()


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [WHOLE, Share(0, 2), Share(1, 2)])
@pytest.mark.parametrize("part_bytes", [1, 999, 8 << 20])
def test_files_give_what_their_tensors_give(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stored: torch.dtype,
    share: Share,
    part_bytes: int,
) -> None:
    monkeypatch.setattr(weight_reading, "PART_BYTES", part_bytes)
    tensors = tensors_of(stored)
    expected = assemble(SPEC, tensors.items(), torch.float32, share=share)

    found = read(save(tmp_path, tensors), torch.float32, share=share)

    assert found.keys() == expected.keys()
    for name, weight in found.items():
        assert torch.equal(weight, expected[name]), name


def test_weights_are_quantized_part_by_part_as_they_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_reading, "PART_BYTES", 999)
    tensors = tensors_of()
    whole = WeightPlaces(SPEC, torch.float32, quantizes=True)
    whole.fill(tensors.items())
    expected = whole.finish()

    found = read(save(tmp_path, tensors), torch.float32, quantizes=True)

    assert found.keys() == expected.keys()
    for name, weight in found.items():
        assert torch.equal(weight.float(), expected[name].float()), name


@pytest.mark.gpu
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantizes", [False, True])
@pytest.mark.parametrize("share", [WHOLE, Share(1, 2)])
def test_a_gpu_gets_what_the_cpu_gets(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stored: torch.dtype,
    quantizes: bool,
    share: Share,
) -> None:
    monkeypatch.setattr(weight_reading, "PART_BYTES", 999)
    files = save(tmp_path, tensors_of(stored))
    expected = read(files, torch.float32, share=share, quantizes=quantizes)

    found = read(files, torch.float32, "cuda", share=share, quantizes=quantizes)

    assert found.keys() == expected.keys()
    for name, weight in found.items():
        assert weight.is_cuda
        assert torch.equal(weight.cpu().float(), expected[name].float()), name


def test_a_share_reads_no_more_than_its_part(tmp_path: Path) -> None:
    def num_bytes(share: Share) -> int:
        places = WeightPlaces(SPEC, torch.float32, share=share)
        with SafetensorsFile(file) as opened:
            return sum(part.num_bytes for part in weight_reading._parts(opened, places, None))

    file = tmp_path / "model.safetensors"
    save_file(tensors_of(), file)
    replicated = 4 * (41 * 32 + 5 * 32 + 42 // 2 * 32)  # embedding, norms, and half the head

    half, whole = num_bytes(Share(0, 2)), num_bytes(WHOLE)

    assert half < whole / 2 + replicated


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes"),
        (b"no header", "header of .* bytes does not fit its 9 bytes"),
        ((4).to_bytes(8, "little") + b"oops", "header is broken"),
        ((2).to_bytes(8, "little") + b"[]", "header is broken"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(
        ConfigError, match=rf"cannot read the weights .*model\.safetensors: .*{reason}"
    ):
        read([path], torch.float32)
    with pytest.raises(ConfigError, match="No such file"):
        read([tmp_path / "none.safetensors"], torch.float32)


def test_a_file_that_was_cut_off_is_named_with_the_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(tensors_of(), path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"model\.safetensors: .* ends behind its"):
        read([path], torch.float32)


def test_a_type_that_is_not_known_is_named(tmp_path: Path) -> None:
    header = json.dumps(
        {"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}, "__metadata__": {"a": "b"}}
    ).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(ConfigError, match=r"tensor x of .* has type F4, which is not supported"):
        read([path], torch.float32)


def test_a_file_that_becomes_shorter_while_it_is_read_fails(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(tensors_of(), path)
    with SafetensorsFile(path) as file:
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(ConfigError, match="ends too early"):
            file.tensors[-1].read()
