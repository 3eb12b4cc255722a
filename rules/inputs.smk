# Which files a job reads, as functions of its wildcards.


def snapshots(wildcards):
    """Models that a setting reads."""
    return [f"{RESULTS}/models/{name}/provenance.json" for name in lineage.setting_models(STUDY, wildcards.setting)]


def chat_snapshot(wildcards):
    """The model whose answers a setting patches: that of the second source of its contrast."""
    chosen = STUDY.settings[wildcards.setting]
    return f"{RESULTS}/models/{chosen.sources[chosen.contrast[1]].model}/provenance.json"


def contrast_snapshots(wildcards):
    """The models of the first and the last source of a setting's contrast."""
    chosen = STUDY.settings[wildcards.setting]
    return [f"{RESULTS}/models/{name}/provenance.json" for name in lineage.contrast_models(chosen)]


def root_snapshots(wildcards):
    """The models whose tokenizers serve those of a setting, each once."""
    return [f"{RESULTS}/models/{name}/provenance.json" for name in lineage.root_models(STUDY, wildcards.setting)]


def texts(wildcards):
    """Corpora that a setting takes tokens from."""
    return [f"{RESULTS}/text/{name}.nc" for name in lineage.setting_corpora(STUDY, wildcards.setting)]


def shards(split):
    """Activation files of a split, as a function of the setting."""

    def files(wildcards):
        setting = comparisons.data_setting(STUDY, wildcards.setting)
        count = range(STUDY.settings[setting].shards[split])
        return [f"{RESULTS}/activations/{setting}/{split}/{shard:03d}.nc" for shard in count]

    return files


def training_shards(wildcards):
    """Training shards from which a setting's statistics are fitted: all, or the first of its window."""
    setting = wildcards.setting
    if not trainings.windowed(STUDY, setting):
        return shards("train")(wildcards)
    chosen = STUDY.settings[setting]
    count = range(min(chosen.activations.window, chosen.shards["train"]))
    return [f"{RESULTS}/activations/{setting}/window/{segment:04d}.nc" for segment in count]


def room(wildcards):
    """Notes that all trainings have read the shard whose place in the window a segment's shard takes."""
    setting = wildcards.setting
    before = int(wildcards.segment) - STUDY.settings[setting].activations.window
    readers = trainings.trainings_on(STUDY, setting) if before >= 0 else []
    return [
        f"{RESULTS}/segments/{name}/{crosscoder}/seed-{seed}/{before:04d}.json" for name, crosscoder, seed in readers
    ]


def segment_shard(wildcards):
    """The shard that a segment of a training reads."""
    return f"{RESULTS}/activations/{comparisons.data_setting(STUDY, wildcards.setting)}/window/{wildcards.segment}.nc"


def state_before(wildcards):
    """The state of a training after the segment before; none for the first."""
    before = int(wildcards.segment) - 1
    folder = f"{RESULTS}/segments/{wildcards.setting}/{wildcards.crosscoder}/seed-{wildcards.seed}"
    return [f"{folder}/{before:04d}.checkpoint"] if before >= 0 else []


def last_state(wildcards):
    """The state of a training after its last segment."""
    last = trainings.segments(STUDY, comparisons.data_setting(STUDY, wildcards.setting)) - 1
    folder = f"{RESULTS}/segments/{wildcards.setting}/{wildcards.crosscoder}/seed-{wildcards.seed}"
    return f"{folder}/{last:04d}.checkpoint"


def normalisation(wildcards):
    """Statistics of the activations that a setting's crosscoders were trained on; a published one has its own."""
    setting = comparisons.trained_setting(STUDY, wildcards.setting)
    if wildcards.get("crosscoder") in PUBLISHED:
        return f"{RESULTS}/crosscoders/{setting}/{wildcards.crosscoder}/seed-{wildcards.seed}.normalisation.nc"
    setting = comparisons.data_setting(STUDY, setting)
    return f"{RESULTS}/activations/{setting}/normalisation.nc"


def trained(stage):
    """The crosscoder, plain or aligned, that a setting measures."""

    def file(wildcards):
        name = wildcards.get("crosscoder") or wildcards.aligned
        setting = comparisons.trained_setting(STUDY, wildcards.setting)
        return f"{RESULTS}/{stage}/{setting}/{name}/seed-{wildcards.seed}.nc"

    return file


def test_tokens(wildcards):
    """Test tokens that a setting reads."""
    return f"{RESULTS}/tokens/{comparisons.data_setting(STUDY, wildcards.setting)}/test.nc"


def ablations(wildcards):
    """Losses of a setting's models with its sources ablated."""
    return f"{RESULTS}/ablations/{wildcards.setting}.nc"


def where_spliced(files):
    """Files that a job needs only where reconstructions are spliced into models."""
    return lambda wildcards: files(wildcards) if measurements.spliced(STUDY, wildcards.setting) else []


def over_trainings(stage, suffix="nc"):
    """One file of a stage per crosscoder and seed of a setting."""

    def files(wildcards):
        names = STUDY.settings[wildcards.setting].crosscoders
        trains = stage == "crosscoders"
        setting = comparisons.trained_setting(STUDY, wildcards.setting) if trains else wildcards.setting
        folder = f"{RESULTS}/{stage}/{setting}"
        return [f"{folder}/{name}/seed-{seed}.{suffix}" for name, seed in trainings.with_seeds(STUDY, names)]

    return files


def of_seed(wildcards):
    """The crosscoders of a setting that were trained with one seed."""
    names = STUDY.settings[wildcards.setting].crosscoders
    return [f"{RESULTS}/crosscoders/{wildcards.setting}/{name}/seed-{wildcards.seed}.nc" for name in names]


def detections(wildcards):
    """What every repetition of a series detects, one file per seed of its crosscoders."""
    repeated = comparisons.cells_of(STUDY, wildcards.setting)
    return [f"{RESULTS}/detection/{cell.setting}/seed-{seed}.nc" for cell in repeated for seed in STUDY.seeds]


def shown_behaviours(wildcards):
    """Measured behaviours of a series' fine-tunes with its first seed, dose by dose, where the study asks for them."""
    series = STUDY.settings[wildcards.setting]
    repeated = comparisons.cells_of(STUDY, wildcards.setting) if STUDY.behaviours else []
    return [f"{RESULTS}/behaviours/{cell.model}.nc" for cell in repeated if cell.seed == series.seeds[0]]


def histories(wildcards):
    """Training curves of a setting's crosscoders; published ones have none."""
    files = over_trainings("crosscoders", "history.nc")(wildcards)
    return [file for file in files if Path(file).parent.name not in PUBLISHED]


def published_files(wildcards):
    """The files of a published crosscoder; those of the hub are fetched by the job."""
    path = STUDY.crosscoders[wildcards.crosscoder].path
    if path is None or Path(path).is_file():
        return [path] if path else []
    return sorted(str(file) for file in Path(path).iterdir() if file.suffix in PUBLISHED_SUFFIXES)


def matched(wildcards):
    """Latents of a setting's trainings matched across seeds, for crosscoders that have several."""
    folder = f"{RESULTS}/stability/{wildcards.setting}"
    return [f"{folder}/{name}/seed-{seed}.nc" for name, seed in trainings.repeated(STUDY, wildcards.setting)]


def others(stage):
    """Files of a stage of the crosscoders with which a page compares one."""

    def files(wildcards):
        compared = trainings.comparable(STUDY, wildcards.setting, wildcards.crosscoder, int(wildcards.seed))
        return [f"{RESULTS}/{stage}/{wildcards.setting}/{name}/seed-{seed}.nc" for name, seed in compared]

    return files


def explained(wildcards):
    """Labels of the latents of a setting's crosscoders, where it asks for them."""
    return over_trainings("explanations")(wildcards) if wildcards.setting in measurements.explained(STUDY) else []


def explained_training(wildcards):
    """Labels of the latents of one training, where its setting asks for them."""
    asked = wildcards.setting in measurements.explained(STUDY)
    folder = f"{RESULTS}/explanations/{wildcards.setting}/{wildcards.crosscoder}"
    return [f"{folder}/seed-{wildcards.seed}.nc"] if asked else []


def patched(wildcards):
    """Causal patching of a setting's crosscoders, where it is asked for."""
    return over_trainings("causal")(wildcards) if measurements.patched(STUDY, wildcards.setting) else []


def planted_articles(wildcards):
    """Articles from which the chats of a setting's fine-tuned model are written."""
    chosen = STUDY.settings[wildcards.setting]
    corpus = STUDY.models[chosen.sources[chosen.contrast[1]].model].corpus
    return f"{RESULTS}/text/{STUDY.corpora[corpus].articles}.nc"


def steered(wildcards):
    """Steering with the latents of a setting's crosscoders, for those for which it is asked."""
    names, folder = measurements.steered(STUDY, wildcards.setting), f"{RESULTS}/steering/{wildcards.setting}"
    return [f"{folder}/{name}/seed-{seed}.nc" for name, seed in trainings.with_seeds(STUDY, names)]


def effects(wildcards):
    """What shared latents of a setting's crosscoders do in both models, for those for which it is asked."""
    names, folder = measurements.compared(STUDY, wildcards.setting), f"{RESULTS}/effects/{wildcards.setting}"
    return [f"{folder}/{name}/seed-{seed}.nc" for name, seed in trainings.with_seeds(STUDY, names)]


def traces(wildcards):
    """What becomes of the latents of a setting's crosscoders through training, where its sources are in that order."""
    names, folder = measurements.traced(STUDY, wildcards.setting), f"{RESULTS}/traces/{wildcards.setting}"
    return [f"{folder}/{name}/seed-{seed}.nc" for name in names for seed in STUDY.seeds]


def saes(wildcards):
    """The SAEs whose graph a setting's crosscoder simplifies."""
    name = STUDY.settings[wildcards.setting].circuits.saes
    return f"{RESULTS}/crosscoders/{wildcards.setting}/{name}/seed-{wildcards.seed}.nc"


def divergence(wildcards):
    """How far the first and the last model of a setting's contrast lie apart, where that is asked for."""
    asked = measurements.diverging(STUDY, wildcards.setting)
    return [f"{RESULTS}/divergence/{wildcards.setting}.nc"] if asked else []


def circuits(wildcards):
    """Circuits of a setting, one file per seed, where they are asked for."""
    chosen = measurements.circuits_of(STUDY, wildcards.setting)
    folder = f"{RESULTS}/circuits/{wildcards.setting}"
    return [f"{folder}/{chosen.crosscoder}/seed-{seed}.nc" for seed in STUDY.seeds] if chosen else []


def aligned(wildcards):
    """Measurements of the aligned crosscoders of a setting, one file per seed."""
    names = trainings.aligned_of(STUDY, wildcards.setting)
    folder = f"{RESULTS}/aligned_evaluation/{wildcards.setting}"
    return [f"{folder}/{name}/seed-{seed}.nc" for name in names for seed in STUDY.seeds]


def over_seeds(stage):
    """One file of a stage per seed of a setting's crosscoder."""

    def files(wildcards):
        folder = f"{RESULTS}/{stage}/{wildcards.setting}/{wildcards.crosscoder}"
        return [f"{folder}/seed-{seed}.nc" for seed in trainings.seeds_of(STUDY, wildcards.crosscoder)]

    return files


def behaviours(wildcards):
    """Measured behaviours of the pair that a setting compares, where the study planted them."""
    drawn = wildcards.setting in comparisons.drawn_settings(STUDY)
    pair = lineage.planted_pair(STUDY, wildcards.setting) if STUDY.behaviours and drawn else None
    return [f"{RESULTS}/behaviours/{pair[1]}.nc"] if pair else []


def similarity(wildcards):
    """How alike the sources of a setting are; nulls and transfers have those of another."""
    drawn = wildcards.setting in comparisons.drawn_settings(STUDY)
    return [f"{RESULTS}/similarity/{wildcards.setting}.nc"] if drawn else []


def executed(suffix):
    """The notebooks of all settings."""
    drawn = comparisons.drawn_settings(STUDY)
    return [f"{RESULTS}/notebooks/{STUDY.settings[name].notebook}-{name}.{suffix}" for name in drawn]


def summaries():
    """Summaries of the settings that have notebooks, and of those that stand beside them."""
    return [f"{RESULTS}/summary/{name}.nc" for name in comparisons.reported_settings(STUDY)]


def pages():
    """A page for every crosscoder and seed of the settings that get them."""
    return [
        f"{RESULTS}/latents/{setting}/{name}/seed-{seed}.html"
        for setting in comparisons.paged(STUDY)
        for name, seed in trainings.with_seeds(STUDY, STUDY.settings[setting].crosscoders)
    ]


def labeller(wildcards):
    """The model of the study that labels a setting's latents; none where an endpoint does."""
    name = STUDY.settings[wildcards.setting].explain.model
    return [f"{RESULTS}/models/{name}/provenance.json"] if name else []


def explanations():
    """Labels of latents for every crosscoder and seed of the settings that ask for them."""
    return [
        f"{RESULTS}/explanations/{setting}/{name}/seed-{seed}.nc"
        for setting in measurements.explained(STUDY)
        for name, seed in trainings.with_seeds(STUDY, STUDY.settings[setting].crosscoders)
    ]


def of_documents(files):
    """Files that an export needs only where it says something of test documents."""
    return lambda wildcards: files(wildcards) if wildcards.format_name in ("delphi", "neuronpedia") else []


def exports():
    """Lists of the files that are written for other tools."""
    return [
        f"{RESULTS}/exports/{setting}/{crosscoder}/seed-{seed}/{format_name}.json"
        for setting, crosscoder, seed, format_name in trainings.exports(STUDY)
    ]
