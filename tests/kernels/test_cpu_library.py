"""Where kernels cannot be compiled, torch computes, and the log of a training says so and why in one line."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crosscoders.kernels import backends, cpu_library, machine

TRAIN = """
import platform, sys
platform.machine = lambda: sys.argv[1]
from crosscoders.kernels import backends
backends.say_what_lacks("cpu")
backends.say_what_lacks("cpu")
print(backends.choose("cpu").kernels)
"""


def said(processor):
    command = [sys.executable, "-c", TRAIN, processor]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr.strip()


@pytest.mark.parametrize("processor", ["arm64", "aarch64"])
def test_another_processor_computes_by_torch(processor):
    kernels, line = said(processor)
    assert kernels == backends.plain().kernels
    expected = f"they are written for x86-64 and this processor is {processor}"
    assert line == f"kernels: torch computes, and nothing is compiled, because {expected}"


@pytest.fixture
def with_avx2(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(machine, "processor", lambda: "flags: avx2 fma")
    cpu_library._compiled.cache_clear()
    yield
    cpu_library._compiled.cache_clear()


def test_no_compiler_is_named(with_avx2, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cpu_library.library() is None
    assert cpu_library.why_not() == "there is no C++ compiler (g++, or the one that CXX names)"


@pytest.mark.parametrize(("compiler", "reason"), [("absent/g++", "cannot be used"), ("false", "failed")])
def test_a_compiler_that_does_not_work_is_named(with_avx2, monkeypatch, compiler, reason):
    monkeypatch.setenv("CXX", compiler)
    assert cpu_library.library() is None
    assert compiler in cpu_library.why_not() and reason in cpu_library.why_not()


def test_a_processor_without_avx2_is_named(with_avx2, monkeypatch):
    monkeypatch.setattr(machine, "processor", lambda: "flags: sse2")
    assert cpu_library.library() is None
    assert "AVX2" in cpu_library.why_not()


LOAD = "from crosscoders.kernels import cpu_library; print(cpu_library.library().register_bytes())"
needs_kernels = pytest.mark.skipif(cpu_library.library() is None, reason="needs a compiler and AVX2")


def loaded(cache: Path) -> tuple[str, str]:
    """What a process prints that uses the kernels with an empty or a given cache."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    done = subprocess.run([sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) in (32, 64)
    return done.stderr


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 16
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache in which the kernels lie."""
    folder = tmp_path_factory.mktemp("cache")
    assert loaded(folder) == ""
    return folder


@needs_kernels
@pytest.mark.parametrize("damage", [truncate, flip, empty, dangle])
def test_a_damaged_library_is_compiled_anew_and_said(cache, tmp_path, damage):
    shutil.copytree(cache, tmp_path / "cache")
    (library,) = (tmp_path / "cache").rglob("kernels-*.so")
    damage(library)
    (line,) = loaded(tmp_path / "cache").splitlines()
    assert line.startswith(f"kernels are compiled anew: {library}: ")
    assert loaded(tmp_path / "cache") == ""


@needs_kernels
def test_others_cannot_write_where_kernels_lie(cache, tmp_path):
    shutil.copytree(cache, tmp_path / "cache")
    folder = tmp_path / "cache" / "crosscoders"
    folder.chmod(0o777)
    assert loaded(tmp_path / "cache") == ""
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("other", ["link", "owner"])
def test_a_cache_that_is_not_the_users_own_is_not_used(monkeypatch, tmp_path, other):
    folder = tmp_path / "crosscoders"
    monkeypatch.setattr(machine, "user_cache", lambda name: folder)
    if other == "link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    used = machine.cache_folder()
    assert used != folder
    assert used.stat().st_mode & 0o777 == 0o700
