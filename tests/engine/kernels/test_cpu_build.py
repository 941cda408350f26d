import logging
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from quire_engine.kernels.cpu import build as build_module, library as library_module
from quire_engine.kernels.cpu.build import BuildError, FolderError, build, find_compiler
from quire_engine.kernels.cpu.library import cache_folder, load_library


def has_compiler() -> bool:
    try:
        find_compiler()
    except BuildError:
        return False
    return True


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="there is no C compiler")
needs_bfloat16 = pytest.mark.skipif(
    not torch.cpu.get_capabilities().get("avx512_bf16"), reason="the kernels need AVX512-BF16"
)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def broken_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "bin" / "cc"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\necho 'error: out of ideas' >&2\nexit 1\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{compiler.parent}:{os.environ['PATH']}")


@needs_compiler
def test_sources_are_compiled_once(tmp_path: Path) -> None:
    first = build(tmp_path)
    written_at = first.stat().st_mtime_ns

    assert build(tmp_path) == first
    assert first.stat().st_mtime_ns == written_at
    assert list(tmp_path.iterdir()) == [first]


@needs_compiler
def test_several_may_compile_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as threads:
        paths = set(threads.map(lambda _: build(tmp_path), range(3)))

    assert len(paths) == 1
    assert list(tmp_path.iterdir()) == list(paths)


@needs_compiler
def test_other_sources_or_flags_are_another_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = build_module.fingerprint("cc")
    monkeypatch.setattr(build_module, "FLAGS", (*build_module.FLAGS, "-g"))
    assert build_module.fingerprint("cc") != before
    other = tmp_path / "source"
    other.mkdir()
    (other / "decoder.c").write_text("int x;\n")
    monkeypatch.setattr(build_module, "SOURCE", other)
    assert build_module.fingerprint("cc") != before


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_torch_computes(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with pytest.raises(BuildError, match="there is no C compiler"):
        build(tmp_path)
    assert load_library(1) is None
    assert "torch computes instead reason=there is no C compiler" in caplog.text


@pytest.mark.usefixtures("broken_compiler")
def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="cc failed: error: out of ideas"):
        build(tmp_path / "kernels")


@needs_compiler
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="file"):
        build(tmp_path / "file" / "kernels")


@needs_compiler
@needs_bfloat16
def test_without_a_folder_the_library_is_compiled_for_this_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.INFO):
        library = load_library(2)
    assert library is not None
    library.close()
    assert "CPU kernels are not kept" in caplog.text


def test_the_cache_folder_follows_the_desktop_standard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "quire" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert library_module.cache_folder() == tmp_path / ".cache" / "quire" / "kernels"
