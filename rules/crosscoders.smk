# Training, evaluation and classification of every crosscoder and seed.
# Needs: activations/{setting}/, tokens/{setting}/test.nc
# Gives: crosscoders/, evaluation/, latents/ and stability/ at {setting}/{crosscoder}/seed-{seed}.nc


rule train_crosscoder:
    input:
        activations=shards("train"),
        validation=shards("validation"),
        normalisation=normalisation,
        code=code("training.train_crosscoder"),
    output:
        crosscoder="results/{study}/crosscoders/{setting}/{crosscoder}/seed-{seed}.nc",
        history="results/{study}/crosscoders/{setting}/{crosscoder}/seed-{seed}.history.nc",
    log:
        "results/{study}/logs/train_crosscoder/{setting}/{crosscoder}/seed-{seed}.log",
    benchmark:
        "results/{study}/benchmarks/train_crosscoder/{setting}/{crosscoder}/seed-{seed}.tsv"
    priority: 5  # long jobs start first; jobs that need their results are short and fill the gaps
    conda:
        "../envs/crosscoders.yaml"
    threads: processes_of(STUDY.crosscoders)
    resources:
        mem="3GB",
        runtime="8h",
        gpu=lambda wildcards: GPU * processes_of(STUDY.crosscoders)(wildcards),
    params:
        settings=settings_of("train_crosscoder"),
    shell:
        "python -m crosscoders training.train_crosscoder --settings {params.settings:q} --activations {input.activations:q}"
        " --validation {input.validation:q} --normalisation {input.normalisation:q} --threads {threads}"
        " --output {output.crosscoder:q} --history {output.history:q} --log {log:q}"


rule evaluate:
    input:
        crosscoder=trained("crosscoders"),
        activations=shards("test"),
        normalisation=normalisation,
        ablations=where_spliced(ablations),
        tokens=where_spliced(test_tokens),
        models=where_spliced(snapshots),
        code=code("analysis.evaluate"),
    output:
        "results/{study}/evaluation/{setting}/{crosscoder}/seed-{seed}.nc",
    log:
        "results/{study}/logs/evaluate/{setting}/{crosscoder}/seed-{seed}.log",
    benchmark:
        "results/{study}/benchmarks/evaluate/{setting}/{crosscoder}/seed-{seed}.tsv"
    priority: 1
    conda:
        "../envs/crosscoders.yaml"
    resources:
        mem="3GB",
        runtime="1h",
        gpu=GPU,
    params:
        settings=settings_of("evaluate"),
        splice=lambda wildcards, input: (
            f"--ablations {input.ablations} --tokens {input.tokens} --models {input.models}" if input.ablations else ""
        ),
    shell:
        "python -m crosscoders analysis.evaluate --settings {params.settings:q} --crosscoder {input.crosscoder:q}"
        " --activations {input.activations:q} --normalisation {input.normalisation:q} --threads {threads}"
        " {params.splice} --output {output:q} --log {log:q}"


rule classify_latents:
    input:
        crosscoder=trained("crosscoders"),
        activations=shards("test"),
        validation=shards("validation"),
        normalisation=normalisation,
        tokens=test_tokens,
        code=code("analysis.classify_latents"),
    output:
        "results/{study}/latents/{setting}/{crosscoder}/seed-{seed}.nc",
    log:
        "results/{study}/logs/classify_latents/{setting}/{crosscoder}/seed-{seed}.log",
    benchmark:
        "results/{study}/benchmarks/classify_latents/{setting}/{crosscoder}/seed-{seed}.tsv"
    priority: 4  # patching and the matching of seeds wait for it
    conda:
        "../envs/crosscoders.yaml"
    resources:
        mem="3GB",
        runtime="2h",
        gpu=GPU,
    params:
        settings=settings_of("classify_latents"),
    shell:
        "python -m crosscoders analysis.classify_latents --settings {params.settings:q} --crosscoder {input.crosscoder:q}"
        " --activations {input.activations:q} --validation {input.validation:q}"
        " --normalisation {input.normalisation:q} --tokens {input.tokens:q} --threads {threads} --output {output:q} --log {log:q}"


rule match_seeds:
    input:
        crosscoders=over_seeds("crosscoders"),
        latents=over_seeds("latents"),
        code=code("analysis.match_seeds"),
    output:
        "results/{study}/stability/{setting}/{crosscoder}/seed-{seed}.nc",
    log:
        "results/{study}/logs/match_seeds/{setting}/{crosscoder}/seed-{seed}.log",
    benchmark:
        "results/{study}/benchmarks/match_seeds/{setting}/{crosscoder}/seed-{seed}.tsv"
    priority: 1
    conda:
        "../envs/crosscoders.yaml"
    resources:
        mem="3GB",
        runtime="1h",
    params:
        settings=settings_of("match_seeds"),
    shell:
        "python -m crosscoders analysis.match_seeds --settings {params.settings:q} --crosscoders {input.crosscoders:q}"
        " --latents {input.latents:q} --threads {threads} --output {output:q} --log {log:q}"


rule train_aligned:
    input:
        activations=shards("train"),
        validation=shards("validation"),
        normalisation=normalisation,
        code=code("training.train_aligned"),
    output:
        "results/{study}/aligned/{setting}/{aligned}/seed-{seed}.nc",
    log:
        "results/{study}/logs/train_aligned/{setting}/{aligned}/seed-{seed}.log",
    benchmark:
        "results/{study}/benchmarks/train_aligned/{setting}/{aligned}/seed-{seed}.tsv"
    priority: 5
    conda:
        "../envs/crosscoders.yaml"
    threads: processes_of(STUDY.aligned)
    resources:
        mem="4GB",
        runtime="8h",
        gpu=lambda wildcards: GPU * processes_of(STUDY.aligned)(wildcards),
    params:
        settings=settings_of("train_aligned"),
    shell:
        "python -m crosscoders training.train_aligned --settings {params.settings:q} --activations {input.activations:q}"
        " --validation {input.validation:q} --normalisation {input.normalisation:q}"
        " --threads {threads} --output {output:q} --log {log:q}"


rule evaluate_aligned:
    input:
        aligned=trained("aligned"),
        activations=shards("test"),
        normalisation=normalisation,
        code=code("analysis.evaluate_aligned"),
    output:
        "results/{study}/aligned_evaluation/{setting}/{aligned}/seed-{seed}.nc",
    log:
        "results/{study}/logs/evaluate_aligned/{setting}/{aligned}/seed-{seed}.log",
    benchmark:
        "results/{study}/benchmarks/evaluate_aligned/{setting}/{aligned}/seed-{seed}.tsv"
    priority: 1
    conda:
        "../envs/crosscoders.yaml"
    resources:
        mem="2GB",
        runtime="1h",
    params:
        settings=settings_of("evaluate_aligned"),
    shell:
        "python -m crosscoders analysis.evaluate_aligned --settings {params.settings:q} --aligned {input.aligned:q}"
        " --activations {input.activations:q} --normalisation {input.normalisation:q} --threads {threads}"
        " --output {output:q} --log {log:q}"
