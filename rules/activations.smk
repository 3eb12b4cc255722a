# Tokens of every split, the activations of every source on them, and what is measured on both without a crosscoder.
# Needs: models/{model}/, text/{corpus}.nc
# Gives: tokens/{setting}/{split}.nc, activations/{setting}/{split}/{shard}.nc, activations/{setting}/normalisation.nc,
# similarity/{setting}.nc, ablations/{setting}.nc


rule tokenize:
    input:
        models=root_snapshots,
        texts=texts,
        code=code("data.tokenize"),
    output:
        "results/{study}/tokens/{setting}/train.nc",
        "results/{study}/tokens/{setting}/validation.nc",
        "results/{study}/tokens/{setting}/test.nc",
    log:
        "results/{study}/logs/tokenize/{setting}.log",
    benchmark:
        "results/{study}/benchmarks/tokenize/{setting}.tsv"
    priority: 8  # every training waits for it
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("tokenize"),
    params:
        settings=settings_of("tokenize"),
    shell:
        "python -m crosscoders data.tokenize --settings {params.settings:q} --models {input.models:q} --texts {input.texts:q}"
        " --outputs {output:q} --log {log:q}"


rule extract_activations:
    input:
        tokens="results/{study}/tokens/{setting}/{split}.nc",
        models=snapshots,
        code=code("activations.extract_activations"),
    output:
        "results/{study}/activations/{setting}/{split}/{shard}.nc",
    log:
        "results/{study}/logs/extract_activations/{setting}/{split}/{shard}.log",
    benchmark:
        "results/{study}/benchmarks/extract_activations/{setting}/{split}/{shard}.tsv"
    priority: 8
    conda:
        "../envs/crosscoders.yaml"
    threads: 1  # shards run side by side, which uses two cores better than one job on both
    resources:
        **asks("extract_activations"),
        gpu=GPU,
    params:
        settings=settings_of("extract_activations"),
    shell:
        "python -m crosscoders activations.extract_activations --settings {params.settings:q} --tokens {input.tokens:q}"
        " --models {input.models:q} --threads {threads} --output {output:q} --log {log:q}"


rule extract_window:
    # A shard is extracted when there is room in the window, and deleted once all have read it.
    input:
        tokens="results/{study}/tokens/{setting}/train.nc",
        models=snapshots,
        room=room,
        code=code("activations.extract_window"),
    output:
        temp("results/{study}/activations/{setting}/window/{segment}.nc"),
    log:
        "results/{study}/logs/extract_window/{setting}/{segment}.log",
    benchmark:
        "results/{study}/benchmarks/extract_window/{setting}/{segment}.tsv"
    wildcard_constraints:
        setting="|".join(WINDOWED) or "none",
    priority: 8
    conda:
        "../envs/crosscoders.yaml"
    threads: 1
    resources:
        **asks("extract_window"),
        gpu=GPU,
    params:
        settings=settings_of("extract_window"),
    shell:
        "python -m crosscoders activations.extract_window --settings {params.settings:q} --tokens {input.tokens:q}"
        " --models {input.models:q} --threads {threads} --output {output:q} --log {log:q}"


rule fit_normalisation:
    input:
        activations=training_shards,
        code=code("activations.fit_normalisation"),
    output:
        "results/{study}/activations/{setting}/normalisation.nc",
    log:
        "results/{study}/logs/fit_normalisation/{setting}.log",
    benchmark:
        "results/{study}/benchmarks/fit_normalisation/{setting}.tsv"
    priority: 8
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("fit_normalisation"),
    params:
        settings=settings_of("fit_normalisation"),
    shell:
        "python -m crosscoders activations.fit_normalisation --settings {params.settings:q} --activations {input.activations:q}"
        " --output {output:q} --log {log:q}"


rule measure_similarity:
    input:
        activations=shards("test"),
        normalisation=normalisation,
        code=code("activations.measure_similarity"),
    output:
        "results/{study}/similarity/{setting}.nc",
    log:
        "results/{study}/logs/measure_similarity/{setting}.log",
    benchmark:
        "results/{study}/benchmarks/measure_similarity/{setting}.tsv"
    priority: 1
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("measure_similarity"),
    params:
        settings=settings_of("measure_similarity"),
    shell:
        "python -m crosscoders activations.measure_similarity --settings {params.settings:q} --activations {input.activations:q}"
        " --normalisation {input.normalisation:q} --threads {threads} --output {output:q} --log {log:q}"


rule measure_ablations:
    input:
        tokens="results/{study}/tokens/{setting}/test.nc",
        activations=shards("test"),
        normalisation=normalisation,
        models=snapshots,
        code=code("activations.measure_ablations"),
    output:
        "results/{study}/ablations/{setting}.nc",
    log:
        "results/{study}/logs/measure_ablations/{setting}.log",
    benchmark:
        "results/{study}/benchmarks/measure_ablations/{setting}.tsv"
    priority: 3  # every evaluation waits for it
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("measure_ablations"),
        gpu=GPU,
    params:
        settings=settings_of("measure_ablations"),
    shell:
        "python -m crosscoders activations.measure_ablations --settings {params.settings:q} --tokens {input.tokens:q}"
        " --activations {input.activations:q} --normalisation {input.normalisation:q} --models {input.models:q}"
        " --threads {threads} --output {output:q} --log {log:q}"
