"""Errors in a study file: found before any job starts, all at once, a line each, without a traceback."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from crosscoders import cli
from crosscoders.errors import UserError
from crosscoders.study import loading, yaml_text
from crosscoders.study.queries import trainings
from crosscoders.workflow import sections

ROOT = Path(__file__).parents[2]


@pytest.fixture
def content(monkeypatch):
    monkeypatch.chdir(ROOT)
    return copy.deepcopy(loading.read(Path("studies/smoke.yaml")))


def put(content, path, value):
    *steps, last = path.split("/")
    for step in steps:
        content = content[step]
    content[last] = value


def problems(content) -> list[str]:
    with pytest.raises(UserError) as error:
        loading.check(content)
    return str(error.value).splitlines()


CASES = [
    (
        "crosscoders/batchtopk/activation/k",
        0,
        "crosscoders.batchtopk.activation.k: 0 does not fit; expected greater than 0",
    ),
    ("crosscoders/batchtopk/activation/k", 1000, "activation.k: 1000 exceeds latents = 128"),
    ("crosscoders/batchtopk/latents", 0, "crosscoders.batchtopk.latents: 0 does not fit"),
    (
        "crosscoders/batchtopk/latents",
        "many",
        "crosscoders.batchtopk.latents: 'many' does not fit; expected a valid integer",
    ),
    ("crosscoders/l1/training/learning_rate", -1e-3, "learning_rate: -0.001 does not fit; expected greater than 0"),
    ("crosscoders/l1/training/learning_rate", float("nan"), "learning_rate: nan does not fit; expected"),
    ("crosscoders/l1/training/leaning_rate", 1e-3, "training.leaning_rate: unknown setting; did you mean"),
    ("crosscoders/l1/blocks/all/share", 0.5, "blocks: the shares sum to 0.5; expected 1"),
    ("crosscoders/l1/blocks/all/reads", [], "blocks.all.reads: empty"),
    ("crosscoders/l1/blocks/all/reads", ["layer-00", "layer-9"], "'layer-9' is not defined"),
    (
        "crosscoders/l1/activation/kind",
        "batchtop",
        "'batchtop' is not one of relu, topk, batchtopk, jumprelu; did you mean 'batchtopk'?",
    ),
    ("seeds", [True], "seeds.0: True does not fit; expected a valid integer"),
    ("seeds", [1, 1], "seeds: [1, 1] repeats a seed"),
    ("seeds", [], "seeds: a list does not fit"),
    (
        "settings/base-vs-chat/sources",
        {"base": {"model": "base", "layer": 1}},
        "sources: 1 given; a crosscoder needs at least two",
    ),
    ("settings/base-vs-chat/sources/chat/model", "base", "sources.chat: the same model, layer and hook as 'base'"),
    (
        "settings/base-vs-chat/sources/chat/model",
        "chatt",
        "'chatt' is not defined; known: base, chat; did you mean 'chat'?",
    ),
    ("settings/base-vs-chat/sources/chat/layer", 3, "sources.chat.layer: 3 is not below the depth 3 of 'chat'"),
    ("settings/base-vs-chat/sources/chat/layer", -1, "sources.chat.layer: -1 does not fit"),
    (
        "settings/base-vs-chat/sources/chat/hook",
        "resid_mid",
        "'resid_mid' is not one of resid_pre, resid_post, mlp_out",
    ),
    ("settings/base-vs-chat/dtype", "float8", "dtype: 'float8' is not one of auto, float32, bfloat16"),
    ("settings/base-vs-chat/context", 4096, "context: 4096 exceeds the 256 tokens that 'base' takes"),
    ("settings/base-vs-chat/tokens/train", {"wiki": 0}, "tokens.train: 0 tokens in all"),
    ("settings/base-vs-chat/tokens/train", {"wiki": 100}, "100 tokens are fewer than a batch of 'batchtopk' (256)"),
    (
        "settings/base-vs-chat/tokens/train",
        {"wikki": 1000},
        "'wikki' is not defined; known: wiki, chats; did you mean 'wiki'?",
    ),
    (
        "settings/base-vs-chat/crosscoders",
        ["batchtopp"],
        "'batchtopp' is not defined; known: l1, batchtopk, saes; did you mean 'batchtopk'?",
    ),
    ("settings/base-vs-chat/contrast", ["base", "cat"], "contrast: 'cat' is not defined"),
    ("splits/train", [0.2, 0.7], "splits: fine_tune and train overlap between 0.2 and 0.3"),
    ("splits/test", [0.9, 0.8], "splits.test: [0.9, 0.8] is not a range"),
    ("corpora/wiki/path", "studies/absent.jsonl", "corpora.wiki.path: 'studies/absent.jsonl' does not exist"),
    ("corpora/wiki/path", "../outside.jsonl", "corpora.wiki.path: '../outside.jsonl' does not exist"),
    (
        "models/base",
        {"kind": "hub", "repo": "a/b", "revision": "main", "licence": "x", "depth": 3, "context_length": 256},
        "models.base.revision: 'main' does not fit; expected a commit hash",
    ),
    ("models/base", {"kind": "folder", "path": "no/such/model"}, "models.base.path: 'no/such/model' is no folder"),
    ("models/base/kind", "weel", "models.base.kind: 'weel' is not one of"),
    ("study", "../escape", "study: '../escape' does not fit; expected a name of letters"),
    (
        "settings/base-vs-chat/sources/difference",
        {"of": ["chat", "bass"]},
        "sources.difference.of: 'bass' is not defined; known: base, chat; did you mean 'base'?",
    ),
    (
        "settings/base-vs-chat/sources/difference",
        {"of": ["chat", "chat"]},
        "sources.difference.of: ['chat', 'chat'] names one source twice",
    ),
    (
        "crosscoders/l1/blocks/all",
        {"share": 1.0, "reads": "each", "writes": "onward", "window": 9},
        "blocks.all.window: 9 is longer than the",
    ),
    ("crosscoders/l1/blocks/all/writes", "onward", "blocks.all.writes: 'onward' needs reads: each"),
    ("settings/again/trained_on", "base-vs-cha", "settings.again.trained_on: 'base-vs-cha' is not defined"),
    (
        "settings/again/trained_on",
        "pair",
        "settings.again.trained_on: 'pair' reads no activations of models of its own",
    ),
    (
        "settings/again/measured_on",
        "cross-layer",
        "measured_on: 'cross-layer' has sources layer-00, layer-01, layer-02; expected those of 'base-vs-chat': base, chat",
    ),
    (
        "settings/again/crosscoders",
        ["batchtop"],
        "settings.again.crosscoders: 'batchtop' is not defined; known: batchtopk; did you mean",
    ),
    ("settings/again/seeds", [1], "settings.again.seeds: unknown setting"),
    (
        "settings/cross-layer/circuits/saes",
        "l1",
        "circuits.saes: 'l1' is no SAE per source; expected reads: each, writes: each",
    ),
    (
        "settings/cross-layer/circuits/crosscoder",
        "batchtopk",
        "circuits.crosscoder: 'batchtopk' is none of the setting's",
    ),
    ("settings/cross-layer/sources/layer-02/layer", 0, "circuits: expected sources of one model and one hook"),
    ("crosscoders/l1/sources", ["layer-9"], "crosscoders ('l1'): sources: 'layer-9' is not defined"),
    ("classification/delta_quantiles", [0.0, 0.9, 0.5], "delta_quantiles: [0.0, 0.9, 0.5]; expected edges that ascend"),
    ("classification/delta_quantiles", [0.0, 0.5, 0.5], "expected edges that ascend"),
    ("classification/shared_between", [0.6, 0.4], "shared_between: [0.6, 0.4]; expected [low, high] with low < high"),
    ("classification/base_only_below", 0.5, "base_only_below: 0.5; expected at most the lower end of shared_between"),
    ("classification/chat_only_above", 0.5, "chat_only_above: 0.5; expected at least the upper end of shared_between"),
    ("classification/seed", 2**63, "classification.seed: 9223372036854775808 does not fit"),
    ("seeds", [0, 2**63], "seeds.1: 9223372036854775808 does not fit"),
    ("models/base/seed", -1, "models.base.seed: -1 does not fit"),
    ("models/base/heads", 5, "models.base.heads: 5; expected a divisor of width"),
    ("models/base/heads", 32, "models.base.heads: 32; expected heads of an even width"),
    ("splits", {}, "splits.train: missing; expected a range"),
    (
        "settings/base-vs-chat/shards/train",
        1001,
        "shards.train: 1001 does not fit; expected less than or equal to 1000",
    ),
    ("settings/base-vs-chat/crosscoders", ["l1", "l1"], "expected each once; 'l1' is there twice"),
    ("settings/base-vs-chat/context", 10**400, "settings.base-vs-chat.context: 1000000"),
    ("settings/base-vs-chat/null_of", "base-vs-chat", "null_of: 'base-vs-chat' is the setting itself"),
    ("settings/base-vs-chat/null_of", "nobody", "null_of: 'nobody' is not defined"),
    ("settings/base-vs-chat/notebook", "model_difing", "notebook: 'model_difing' is not defined; known: "),
    ("settings/base-vs-chat/causal/components", [], "causal.components: a list does not fit"),
    ("settings/base-vs-chat/causal/components", [1, 4000], "causal.components: [1, 4000] exceed the width"),
    ("settings/base-vs-chat/steering/strengths", [0.5, 0.5], "strengths: [0.5, 0.5] does not fit; expected each once"),
    ("settings/base-vs-chat/steering/crosscoders", ["l1"], "steering.crosscoders: 'l1' is not defined"),
    (
        "settings/base-vs-chat/contrast",
        ["chat", "base"],
        "steering: 'chat' and 'base'; expected a base and its fine-tune",
    ),
    (
        "settings/cross-layer/steering",
        {"latents": 2},
        "steering: the contrast names 3 sources; expected a pair, because steering runs two models",
    ),
    (
        "settings/base-vs-chat/contrast",
        ["base", "chat", "base"],
        "causal: the contrast names 3 sources; expected a pair, because causal runs two models: make a setting of its own",
    ),
    ("settings/cross-layer/contrast", ["layer-00"], "contrast: a list does not fit; expected"),
    ("settings/cross-layer/contrast", [f"s{i}" for i in range(7)], "contrast: a list does not fit; expected"),
    (
        "settings/pair/planted/subsets",
        {"base": 2},
        "planted.subsets: expected with a contrast of three sources or more; a pair has base-only and chat-only concepts",
    ),
    ("classification/present_above", 0.0, "classification.present_above: 0.0 does not fit"),
    (
        "models/chat/base",
        "chat",
        "models.chat.base: 'chat' is made, in turn, from a model that is made from it; expected no circle",
    ),
    ("settings/base-vs-chat/sources/chat/layer", 2, "steering: the contrast needs two models at the same layer"),
    ("settings/base-vs-chat/equivalence/crosscoders", ["l1"], "equivalence.crosscoders: 'l1' is not defined"),
    ("settings/base-vs-chat/sources/chat/layer", 2, "equivalence: the contrast needs two models at the same layer"),
    ("crosscoders/l1/training/initial_l0", 1e5, "training.initial_l0: 100000.0; expected at most latents = 128"),
    ("crosscoders/l1/training/decoder_norm", 1e308, "decoder_norm: 1e+308 does not fit"),
    ("crosscoders/l1/penalty/coefficient", float("inf"), "penalty.coefficient: inf does not fit"),
    ("corpora/wiki/path", "/dev/zero", "corpora.wiki.path: '/dev/zero' is a device; expected a file or a folder"),
    ("corpora/wiki/path", "", "corpora.wiki.path: '' does not fit"),
    ("corpora/wiki/path", "x" * 5000, "corpora.wiki.path: "),
    ("chat_template/opening", "{role:>99999999}", "formats a placeholder; expected {role} as it is"),
    ("chat_template/opening", "{role!r}", "formats a placeholder"),
    ("chat_template/opening", "{role.__class__}", "unknown placeholder {role.__class__}"),
    ("chat_template/sink", "", "chat_template.sink: '' does not fit; expected a text of at least 1 character"),
    ("models/near", {"kind": "rounded", "base": "bass", "bits": 4}, "models.near.base: 'bass' is not defined"),
    ("models/near", {"kind": "rounded", "base": "base", "bits": 1}, "models.near.bits: 1 does not fit; expected"),
    ("models/near", {"kind": "rounded", "base": "base", "bits": 9}, "models.near.bits: 9 does not fit; expected"),
    ("models/near", {"kind": "rounded", "base": "near", "bits": 4}, "models.near.base: 'near' is itself rounded"),
    ("models/near", {"kind": "noised", "base": "base", "like": "cht"}, "'cht' is not defined; known: base, chat, near"),
    (
        "models/near",
        {"kind": "noised", "base": "base", "like": "base"},
        "like: 'base'; expected another model than base",
    ),
    ("models/near", {"kind": "noised", "base": "base", "like": "near"}, "models.near.like: 'near' is itself noised"),
    (
        "models",
        {
            "base": {"kind": "random", "depth": 3, "width": 32, "heads": 2},
            "chat": {"kind": "random", "depth": 2, "width": 32, "heads": 2},
            "near": {"kind": "noised", "base": "base", "like": "chat"},
        },
        "models.near.like: 'chat' has depth 2; expected 3, that of 'base'",
    ),
    (
        "settings/cross-layer/divergence_tokens",
        100,
        "divergence_tokens: the first and the last source of the contrast are of 'base'; expected two models, or 0",
    ),
    ("crosscoders/l1/nested", ["all"], "crosscoders.l1.nested: ['all'] is one block; expected two or more"),
    ("crosscoders/l1/nested", ["all", "al"], "crosscoders.l1.nested: ['all', 'al']; expected every block once: all"),
    (
        "crosscoders/l1/delta",
        {"of": ["layer-00", "layer-9"]},
        "crosscoders ('l1'): delta.of: 'layer-9' is not defined; known: layer-00",
    ),
    ("crosscoders/l1/delta", {"of": ["chat"]}, "crosscoders.l1.delta.of: a list does not fit; expected"),
    (
        "crosscoders/l1/delta",
        {"of": ["chat", "chat"]},
        "crosscoders.l1.delta.of: ['chat', 'chat'] does not fit; expected each once",
    ),
    ("crosscoders/l1/blocks/all/k", 3, "crosscoders.l1.activation.kind: relu, but blocks have a k of their own"),
    (
        "crosscoders/batchtopk/blocks",
        {"shared": {"share": 0.5, "k": 3}, "change": {"share": 0.5, "k": 2}},
        "crosscoders.batchtopk.blocks: their k sum to 5; expected activation.k = ",
    ),
    (
        "crosscoders/batchtopk/blocks",
        {"shared": {"share": 0.5, "k": 3}, "change": {"share": 0.5}},
        "crosscoders.batchtopk.blocks.change.k: missing; expected one for every block or for none",
    ),
]


@pytest.mark.parametrize(("path", "value", "expected"), CASES, ids=[f"{case[0]}={case[1]!r}"[:70] for case in CASES])
def test_one_bad_value_is_one_line(content, path, value, expected):
    put(content, path, value)
    found = problems(content)
    assert any(expected in line for line in found), found
    assert all(line.startswith("config: ") for line in found)


def test_no_source_has_the_name_of_latents_without_any(content):
    setting = content["settings"]["cross-layer"]
    setting["sources"]["none"] = setting["sources"].pop("layer-01")
    setting["contrast"] = ["layer-00", "none", "layer-02"]
    assert any("contrast: a source called 'none'" in line for line in problems(content))
    setting["contrast"] = ["layer-00", "none"]
    assert not any("called 'none'" in line for line in problems(content)), "a pair has no subsets"


@pytest.mark.parametrize("collection", ["settings", "crosscoders", "models"])
@pytest.mark.parametrize("change", [str.upper, lambda name: name.replace("-", "_") if "-" in name else name.title()])
def test_names_that_would_share_a_file_or_a_rule_are_one_line(content, collection, change):
    name = next(iter(content[collection]))
    content[collection][change(name)] = copy.deepcopy(content[collection][name])
    assert any(f"{collection}.{change(name)}: too like {name!r}" in line for line in problems(content))


WHEEL = {
    "kind": "wheel",
    "package": "six",
    "version": "1.16.0",
    "sha256": "0" * 64,
    "file": "six.py",
    "licence": "MIT",
    "format": "articles",
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("package", "evil @ file:///tmp/evil.tar.gz"),
        ("package", "-r/etc/passwd"),
        ("package", "--index-url=http://evil.example"),
        ("package", "http://evil.example/six.whl"),
        ("package", "six; os_name == 'posix'"),
        ("package", "six\n-r other"),
        ("package", "./six"),
        ("package", "six[extra]"),
        ("version", "1.0 --hash=sha256:00"),
        ("version", "1.0 @ https://evil.example"),
        ("version", "*"),
        ("version", "1.0\n--no-binary=:all:"),
        ("version", "1.0;python_version>'3'"),
        ("file", "../../etc/passwd"),
        ("file", "/etc/passwd"),
    ],
)
def test_nothing_but_a_wheel_of_the_index_can_be_named(content, key, value):
    content["corpora"]["wiki"] = WHEEL | {key: value}
    (line,) = problems(content)
    assert line.startswith(f"config: corpora.wiki.{key}: ")


@pytest.mark.parametrize(
    "repo", ["../../outside", "/etc", "a/b/c", "-x/y", "a/..", "https://evil.example/x", "a b/c", ""]
)
@pytest.mark.parametrize("collection", ["models", "corpora"])
def test_nothing_but_a_repository_of_the_hub_can_be_named(content, collection, repo):
    entry = {"kind": "hub", "repo": repo, "revision": "0" * 40, "licence": "x"}
    sizes = {"depth": 3, "context_length": 256} if collection == "models" else {"documents": 10}
    content[collection][next(iter(content[collection]))] = entry | sizes
    assert any(".repo: " in line for line in problems(content))


def test_all_problems_come_at_once(content):
    for path, value, _ in (CASES[0], CASES[4], CASES[16], CASES[27], CASES[29]):
        put(content, path, value)
    found = "\n".join(problems(content))
    for _, _, expected in (CASES[0], CASES[4], CASES[16], CASES[27], CASES[29]):
        assert expected in found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the study file is empty"),
        ("study: a\n\tseeds: [0]\n", "line 2: indented with a tab; expected spaces"),
        ("study: a\nstudy: b\n", "line 2: duplicate key 'study', first given in line 1"),
        ("- a\n- b\n", "expected a mapping of settings, found a list"),
        ("study: [a\n", "line 2:"),
        ("x: &a [1, *a]\n", "line 1: a value that contains itself"),
        ("x: " + "[" * 5000 + "]" * 5000, "nested more than 20 deep"),
        ("x: " + "{a: " * 5000 + "}" * 5000, "nested more than 20 deep"),
        ("? [a, b]\n: 1\n", "line 1: a list or mapping as key; expected a text"),
        ("study: a\nseeds: {0: 1}\n", "line 2: the key 0; expected a text"),
        ("null: 1\n", "line 1: the key null; expected a text"),
        ("x: !!int abc\n", "line 1: the tag"),
        ("x: !!python/object/apply:os.system ['true']\n", "line 1: the tag"),
        ("x: \0\n", "line 1: the character U+0000 is not allowed"),
        ("x: " + "9" * 5000, "a number of 5,000 characters"),
        ("x: " + "y" * 3_000_000, "expected at most 2,000,000"),
        (
            "".join(f"m{i}: &m{i} [{', '.join([f'*m{i - 1}' if i else '1'] * 9)}]\n" for i in range(30)),
            "values, aliases counted",
        ),
        (
            "m0: &m0 {x: 1}\n" + "".join(f"m{i}: &m{i} {{<<: [*m{i - 1}, *m{i - 1}]}}\n" for i in range(1, 60)),
            "aliases counted",
        ),
        ("x: *nobody\n", "undefined alias"),
        ("--- {a: 1}\n--- {b: 2}\n", "but found another document"),
    ],
)
def test_unreadable_files(tmp_path, text, expected):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml") as error:
        loading.load(path)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"absent\.yaml: cannot be read \(No such file"):
        loading.load(tmp_path / "absent.yaml")


def test_numbers_in_exponent_notation_are_numbers():
    assert yaml_text.parse("[1e-4, 1E5, 2.5e-3, -1e3]", "text") == [1e-4, 1e5, 2.5e-3, -1e3]


def test_a_date_is_text(tmp_path):
    assert yaml_text.parse("x: 2026-01-01", "text") == {"x": "2026-01-01"}


@pytest.mark.parametrize("value", ["y" * 100_000, ["y" * 1000] * 100, {"y" * 1000: 1}, 10**39])
def test_long_values_make_no_long_lines(content, value):
    for path in (
        "study",
        "seeds",
        "models/base/kind",
        "corpora/wiki/path",
        "settings/base-vs-chat/crosscoders",
        "splits",
    ):
        changed = copy.deepcopy(content)
        put(changed, path, value)
        assert all(len(line) <= 200 for line in problems(changed)), path


def test_the_command_line_prints_lines_and_no_traceback(tmp_path, content):
    put(content, "crosscoders/l1/latents", 0)
    put(content, "seeds", [True])
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(content))
    done = subprocess.run(
        [sys.executable, "-m", "crosscoders.cli", "check", path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("path", ["config.yaml", *map(str, sorted((ROOT / "studies").glob("*.yaml")))])
def test_every_study_of_the_project_is_valid(monkeypatch, path):
    monkeypatch.chdir(ROOT)
    study = loading.load(path)
    assert study.settings


@pytest.mark.parametrize("path", [Path("config.yaml"), *sorted(Path("studies").glob("*.yaml"))], ids=str)
def test_members_that_a_study_compares_see_the_same_tokens(monkeypatch, path):
    monkeypatch.chdir(ROOT)
    assert trainings.unequal_budgets(loading.load(path)) == []


@pytest.mark.parametrize("collection", ["crosscoders/l1", "aligned/aligned"])
def test_members_with_unequal_budgets_are_a_warning_of_check(content, tmp_path, capsys, collection):
    put(content, "settings/base-vs-chat/crosscoders", ["l1", "batchtopk"])
    put(content, f"{collection}/training/steps", 61)
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(content))
    cli.main(["check", str(study)])
    lines = [line for line in capsys.readouterr().out.splitlines() if "settings.base-vs-chat:" in line]
    (line,) = lines
    assert line.startswith("warning: settings.base-vs-chat: its members see unequal numbers of tokens")
    assert f"{collection.split('/')[1]} 15,616" in line and "batchtopk 15,360" in line


@pytest.mark.parametrize(("longest", "complaints"), [(120, 0), (180, 1)])
def test_members_are_compared_at_each_number_of_tokens(content, tmp_path, longest, complaints):
    """Crosscoders that differ in their steps alone are one member; all members need the same numbers of tokens."""
    for member, steps in (("l1", 120), ("batchtopk", longest)):
        put(content, f"crosscoders/{member}-long", copy.deepcopy(content["crosscoders"][member]))
        put(content, f"crosscoders/{member}-long/training/steps", steps)
    alike = {"l1": "l1", "batchtopk": "batchtopk", "l1-long": "l1", "batchtopk-long": "batchtopk"}
    put(content, "settings/base-vs-chat/crosscoders", list(alike))
    for setting in ("base-vs-chat", "again"):
        put(content, f"settings/{setting}/aligned", [])
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    study = loading.load(path)
    assert trainings.members_of(study, "base-vs-chat") == alike
    found = [line for line in trainings.unequal_budgets(study) if "settings.base-vs-chat:" in line]
    assert len(found) == complaints


def test_a_study_without_kinds_is_read_and_told_what_to_write(tmp_path, content, capsys):
    """Study files were once written without `kind`; the kind followed from the keys that were there."""
    marked = loading.check(content)
    for setting in content["settings"].values():
        setting.pop("kind", None)
        for source in setting.get("sources", {}).values():
            source.pop("kind", None)
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(content))
    assert loading.load(path) == marked
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert f"{path}: settings.again.kind: missing; read as 'transfer'. Please write `kind: transfer`." in lines


@pytest.mark.parametrize("kind", ["nul", None, ["text"], 3])
def test_a_wrong_kind_is_one_line_with_the_kinds_there_are(content, kind):
    put(content, "settings/again/kind", kind)
    put(content, "models/base/kind", kind)
    put(content, "settings/base-vs-chat/sources/base/kind", kind)
    found = problems(content)
    assert any(line.startswith("config: settings.again.kind: ") and "null_control" in line for line in found), found
    assert any(line.startswith("config: models.base.kind: ") and "fine_tuned" in line for line in found), found


def test_a_section_holds_only_what_its_stage_reads(content):
    study = loading.check(content)
    before = {stage: sections.section(study, stage, **names) for stage, names in STAGES.items()}
    put(content, "crosscoders/batchtopk/activation/k", 9)
    put(content, "classification/confidence", 0.9)
    changed = loading.check(content)
    after = {stage: sections.section(changed, stage, **names) for stage, names in STAGES.items()}
    assert {stage for stage in STAGES if before[stage] != after[stage]} == {
        "train_crosscoder",
        "evaluate",
        "classify_latents",
        "collate",
        "manifest",
    }


STAGES = {
    "fetch_model": {"model": "base"},
    "fetch_text": {"corpus": "wiki"},
    "fine_tune": {"model": "chat"},
    "measure_behaviours": {"model": "chat"},
    "tokenize": {"setting": "base-vs-chat"},
    "extract_activations": {"setting": "base-vs-chat", "split": "train", "shard": "000"},
    "fit_normalisation": {"setting": "base-vs-chat"},
    "train_crosscoder": {"setting": "base-vs-chat", "crosscoder": "batchtopk", "seed": "0"},
    "evaluate": {"setting": "base-vs-chat", "crosscoder": "l1", "seed": "0"},
    "classify_latents": {"setting": "base-vs-chat", "crosscoder": "l1", "seed": "0"},
    "collate": {"setting": "base-vs-chat"},
    "notebook": {"setting": "base-vs-chat"},
    "manifest": {},
}
