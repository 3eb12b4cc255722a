"""Artifacts are whole or absent, and never trusted when damaged."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from crosscoders import artifacts, provenance, storage
from crosscoders.errors import UserError


@pytest.fixture
def dataset():
    v = artifacts.variable
    values = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    return xr.Dataset(
        {
            "a": v(
                ("token", "width"),
                torch.from_numpy(values).bfloat16().view(torch.uint16).numpy(),
                "bits",
                encoding_note=artifacts.BF16,
            ),
            "name": v("document", np.array(["x", "ü", ""], dtype=object), "names"),
            "class": artifacts.flags("token", np.zeros(200), ["none", "some"], "class"),
        },
        attrs=provenance.provenance("study", "stage", {"k": 3}, seed=1),
    )


def test_round_trip_with_provenance(tmp_path, dataset):
    path = tmp_path / "deep" / "a.nc"
    artifacts.write(dataset, path, contiguous=["a"])
    found = artifacts.read(path)
    xr.testing.assert_identical(found, dataset)
    assert {"study", "stage", "settings", "commit", "versions", "seed"} <= set(found.attrs)
    assert np.array_equal(artifacts.memory_map(path, "a"), dataset["a"].values)
    assert xr.open_dataset(path)["a"].attrs["long_name"] == "bits", "any netCDF reader opens the file"
    with h5py.File(path) as plain:
        assert plain["a"].shape == (200, 8)


def test_one_long_string_does_not_pad_all_others(tmp_path):
    text = np.array(["x" * 200_000, *["short"] * 20_000], dtype=object)
    artifacts.write(xr.Dataset({"text": artifacts.variable("segment", text, "text")}), tmp_path / "t.nc")
    script = (
        "import resource, sys; from crosscoders import artifacts; "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "assert artifacts.read(sys.argv[1])['text'].values[1] == 'short'; "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "t.nc"], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100_000, "kilobytes; padded, the strings would take 16 GB"


def test_same_content_gives_same_bytes(tmp_path, dataset):
    for name in "ab":
        artifacts.write(dataset, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_any_flipped_bit_is_found_and_named(tmp_path_factory, position, bit):
    path = tmp_path_factory.mktemp("flip") / "a.nc"
    artifacts.write(xr.Dataset({"a": artifacts.variable("x", np.arange(300.0), "values")}), path)
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.nc: (corrupt|truncated)"):
        artifacts.read(path)


@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=30, deadline=None)
def test_any_truncation_is_found_and_named(tmp_path_factory, share):
    path = tmp_path_factory.mktemp("cut") / "a.nc"
    artifacts.write(xr.Dataset({"a": artifacts.variable("x", np.arange(300.0), "values")}), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"a\.nc: (truncated|corrupt)"):
        storage.verify(path)


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path):
    script = textwrap.dedent(
        """
        import sys, numpy as np, xarray as xr
        from crosscoders import artifacts
        print("ready", flush=True)
        for i in range(10**6):
            content = xr.Dataset({"a": artifacts.variable("x", np.full(400_000, float(i)), "values")})
            artifacts.write(content, sys.argv[1])
        """
    )
    path = tmp_path / "a.nc"
    found = 0
    for delay in np.linspace(0.005, 0.25, 8):
        writer = subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, start_new_session=True
        )
        writer.stdout.readline()
        time.sleep(delay)
        os.killpg(writer.pid, signal.SIGKILL)
        writer.wait()
        if path.exists():
            values = artifacts.read(path)["a"].values
            assert (values == values[0]).all()
            found += 1
    assert found > 0


def test_a_full_disk_is_one_line_with_path_and_bytes(tmp_path, dataset):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        big = xr.Dataset({"a": artifacts.variable("x", np.zeros(100_000), "values")})
        with pytest.raises(UserError, match=r"a\.nc: disk full: needs 8\d\d,\d{3} bytes, [\d,]+ bytes are free"):
            artifacts.write(big, small / "a.nc")
        assert list(small.iterdir()) == []
        os.system(f"mount -o remount,ro {small}")
        with pytest.raises(UserError, match=r"b\.nc: cannot write .* needs [\d,]+ bytes"):
            artifacts.write(dataset, small / "b.nc")
    finally:
        subprocess.run(["umount", small], check=True)


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
@settings(max_examples=200, deadline=None)
def test_bits_are_read_as_torch_reads_them(values):
    rounded = torch.tensor(values, dtype=torch.float32).bfloat16()
    bits = rounded.view(torch.uint16).numpy()
    assert np.array_equal(artifacts.from_bits(bits), rounded.float().numpy(), equal_nan=True)


def test_a_chunked_variable_is_not_mapped(tmp_path):
    path = tmp_path / "a.nc"
    artifacts.write(xr.Dataset({"s": artifacts.variable("x", np.array(["a", "b"], dtype=object), "text")}), path)
    with pytest.raises(UserError, match="no variable 'b'"):
        artifacts.memory_map(path, "b")


# -- the commit of the checkout ----------------------------------------------------------------------------------------

IDENTITY = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def git(folder, *arguments):
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=plain | IDENTITY, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def recorded_commit(project, **variables):
    script = "from crosscoders import provenance; print(provenance.commit())"
    environment = os.environ | {"PYTHONPATH": str(project / "src")} | variables
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def outer(tmp_path):
    """A repository in a folder with a space, in which a copy of this package lies uncommitted."""
    folder = tmp_path / "ou ter ü"
    source = Path(artifacts.__file__).parent
    shutil.copytree(source, folder / "copy/src/crosscoders", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "note").write_text("1")
    git(folder, "init", "-q")
    git(folder, "add", "note")
    git(folder, "commit", "-qm", "Start")
    return folder


def test_a_copy_inside_of_another_repository_has_no_commit(outer):
    assert recorded_commit(outer / "copy") == "unknown"
    assert recorded_commit(outer / "copy", GIT_DIR=str(outer / ".git")) == "unknown"
    assert recorded_commit(outer / "copy", GIT_DIR=str(outer / ".git"), GIT_WORK_TREE=str(outer / "copy")) == "unknown"


def test_checkouts_and_worktrees_have_their_commit_whatever_git_is_told(outer):
    project = outer / "copy"
    git(project, "init", "-q")
    git(project, "add", "src")
    git(project, "commit", "-qm", "Add")
    commit = git(project, "rev-parse", "HEAD")
    git(project, "worktree", "add", "-q", "../tree", "-b", "other")
    for folder in (project, outer / "tree"):
        assert recorded_commit(folder) == commit
        assert recorded_commit(folder, GIT_DIR=str(outer / ".git")) == commit
    (project / "src/crosscoders/device.py").write_text("# edited\n")
    assert recorded_commit(project) == f"{commit}-dirty"
    assert recorded_commit(outer / "tree") == commit
