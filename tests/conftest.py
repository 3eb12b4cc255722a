"""What tests share: small crosscoder settings, and no file left behind."""

import collections
import os
import shutil

import pytest

if shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which anything below may do

import torch
import transformers
from tests import project

from crosscoders.kernels import backends, candidates, cpu, cpu_library
from crosscoders.study.blocks import ACTIVATIONS
from crosscoders.study.settings.crosscoders import CrosscoderSettings


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest: one that began last would keep one processor idle.

    One of those that need the finished study comes first and makes it; the others come when it is there.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    waiting = collections.Counter(item.path for item in items if "finished_project" in item.fixturenames)
    first = waiting.most_common(1)[0][0] if waiting else None
    items.sort(key=lambda item: (item.path != first, item.path not in slow - {*waiting}, item.path not in waiting))


@pytest.fixture(autouse=True)
def _plain_torch():
    torch.set_num_threads(1)
    torch.set_grad_enabled(True)


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory):
    """A copy of the project with its smoke study finished; no test may edit it (`tests.project.copy_finished`)."""
    own = tmp_path_factory.getbasetemp()
    return project.finished((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "finished")


@pytest.fixture
def browser(tmp_path):
    """Headless Chromium, where the machine has it."""
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("no chromedriver on this machine; Debian: chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'chrome'}"):
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture
def small_problems(monkeypatch):
    """Small problems are computed as large ones are."""
    monkeypatch.setattr(candidates, "WORTHWHILE", 0)
    monkeypatch.setattr(candidates, "FEW_TOKENS", 1)
    monkeypatch.setattr(cpu, "sparse_below", lambda: 0.5)


@pytest.fixture(params=["torch", "C++ rows", "C++ columns"])
def backend(request, monkeypatch, small_problems):
    """A backend on a CPU, which is the one chosen while a test runs."""
    if request.param == "torch":
        found = backends.plain()
    elif cpu_library.library() is None:
        pytest.skip("needs g++ and a processor with AVX2")
    else:
        found = backends.compiled()
    columns_from = dict.fromkeys((8, 4, 2), 0 if request.param == "C++ columns" else 10**9)
    monkeypatch.setattr(cpu, "RECONSTRUCTED_BY_COLUMNS_FROM", columns_from)
    monkeypatch.setattr(backends, "choose", lambda device="cpu": found)
    return found


@pytest.fixture(scope="module")
def small_llama():
    """A Llama of four layers and width 32 with random weights that matter."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def member():
    """Factory of crosscoder settings: activation, penalty and blocks of one member of the family."""

    def make(
        activation="batchtopk",
        k=4,
        penalty="none",
        blocks=None,
        latents=64,
        coefficient=0.3,
        target=None,
        loss=None,
        **training,
    ):
        return CrosscoderSettings.model_validate(
            {
                "latents": latents,
                "blocks": blocks or {"all": {"share": 1.0}},
                "activation": {"kind": activation} | ({"k": k} if ACTIVATIONS[activation].ranked_over else {}),
                "penalty": {"kind": penalty, "coefficient": coefficient, "target_l0": target},
                "training": {
                    "steps": 20,
                    "batch_tokens": 32,
                    "learning_rate": 1e-2,
                    "warmup_steps": 2,
                    "decay_share": 0.2,
                    "gradient_clip": 1.0,
                    "decoder_norm": 0.5,
                    "dead_tokens": 64,
                }
                | training,
            }
            | (loss or {})
        )

    return make
