"""Where kernels cannot be compiled, torch computes, and the log of a training says so and why in one line."""

import platform
import subprocess
import sys

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
