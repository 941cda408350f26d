import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from gguf_files import write_gguf
from quire_engine.errors import ConfigError
from quire_engine.model.demo import demo_model
from quire_engine.model.gguf_metadata import read_metadata


def test_the_demo_model_reads_as_the_format_s_own_reader_reads_it() -> None:
    reference = gguf.GGUFReader(demo_model())

    metadata = read_metadata(demo_model())

    fields = {k: v for k, v in reference.fields.items() if not k.startswith("GGUF.")}
    assert metadata.values.keys() == fields.keys()
    for key in ("tokenizer.ggml.pre", "llama.rope.freq_base", "tokenizer.ggml.token_type"):
        assert metadata.values[key] == fields[key].contents()
    tokens = fields["tokenizer.ggml.tokens"]
    assert metadata.values["tokenizer.ggml.tokens"][:500] == [
        bytes(tokens.parts[index]).decode() for index in tokens.data[:500]
    ]
    assert [
        (name, list(entry.shape), entry.ggml_type, entry.position)
        for name, entry in metadata.tensors.items()
    ] == [(t.name, t.shape.tolist(), int(t.tensor_type), t.data_offset) for t in reference.tensors]


def test_values_of_every_kind_are_read(tmp_path: Path) -> None:
    file = write_gguf(
        tmp_path / "m.gguf",
        values={"flag": True, "text": "h\u00e9", "ints": [1, -2], "texts": ["a", ""], "real": 0.5},
    )

    metadata = read_metadata(file)

    found = [metadata.get(name) for name in ("flag", "text", "ints", "texts", "real", "absent")]
    assert found == [True, "h\u00e9", [1, -2], ["a", ""], 0.5, None]


def test_small_tensors_are_read_in_place(tmp_path: Path) -> None:
    tensors = {"a": np.arange(7), "rope_freqs.weight": np.array([1.0, 2.5, 8.0])}
    metadata = read_metadata(write_gguf(tmp_path / "m.gguf", tensors=tensors))

    assert metadata.read_floats("rope_freqs.weight") == (1.0, 2.5, 8.0)
    assert metadata.read_floats("absent") is None


@pytest.mark.parametrize("length", [0, 3, 10, 24, 60, 200])
def test_a_file_cut_off_in_its_header_is_refused(tmp_path: Path, length: int) -> None:
    whole = write_gguf(tmp_path / "m.gguf").read_bytes()
    file = tmp_path / "cut.gguf"
    file.write_bytes(whole[:length])

    with pytest.raises(ConfigError, match=r"cut\.gguf is not a"):
        read_metadata(file)


def test_other_files_and_versions_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"PK\x03\x04" + bytes(40))
    with pytest.raises(ConfigError, match="is not a GGUF file: it starts with"):
        read_metadata(file)

    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 9, 0, 0))
    with pytest.raises(ConfigError, match="version 9; versions 2 and 3"):
        read_metadata(file)


def test_a_huge_count_is_refused_before_it_costs_anything(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    key = b"x.y"
    array = struct.pack("<IIQ", 9, 8, 1 << 60)
    file.write_bytes(
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key + array
    )

    with pytest.raises(ConfigError, match="is not a complete GGUF file"):
        read_metadata(file)


def test_the_tensors_of_all_shards_are_found_from_the_first(tmp_path: Path) -> None:
    for part, name in ((1, "rope_freqs.weight"), (2, "output.weight")):
        file = tmp_path / f"m-0000{part}-of-00002.gguf"
        write_gguf(file, values={"part": part}, tensors={name: np.full(3, part)})

    metadata = read_metadata(tmp_path / "m-00001-of-00002.gguf")

    assert metadata.tensors.keys() == {"rope_freqs.weight", "output.weight"}
    assert metadata.get("part") == 1
    assert metadata.read_floats("output.weight") == (2.0, 2.0, 2.0)
