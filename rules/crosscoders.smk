# Training, evaluation and classification of every crosscoder and seed.
# Needs: activations/{setting}/, tokens/{setting}/test.nc
# Gives: crosscoders/, evaluation/ and latents/ at {setting}/{crosscoder}/seed-{seed}.nc


rule train_crosscoder:
    input:
        activations=shards("train"),
        validation=shards("validation"),
        normalisation="results/{study}/activations/{setting}/normalisation.nc",
        code=code("train"),
    output:
        crosscoder="results/{study}/crosscoders/{setting}/{crosscoder}/seed-{seed}.nc",
        history="results/{study}/crosscoders/{setting}/{crosscoder}/seed-{seed}.history.nc",
    log:
        "results/{study}/logs/train_crosscoder/{setting}/{crosscoder}/seed-{seed}.log",
    benchmark:
        "results/{study}/benchmarks/train_crosscoder/{setting}/{crosscoder}/seed-{seed}.tsv"
    conda:
        "../envs/crosscoders.yaml"
    threads: 1
    resources:
        mem="3GB",
        runtime="8h",
        gpu=GPU,
    params:
        settings=settings_of("train_crosscoder"),
    shell:
        "python -m crosscoders.train --settings {params.settings:q} --activations {input.activations:q}"
        " --validation {input.validation:q} --normalisation {input.normalisation:q} --threads {threads}"
        " --output {output.crosscoder:q} --history {output.history:q} --log {log:q}"


rule evaluate:
    input:
        crosscoder="results/{study}/crosscoders/{setting}/{crosscoder}/seed-{seed}.nc",
        activations=shards("test"),
        normalisation="results/{study}/activations/{setting}/normalisation.nc",
        code=code("evaluation"),
    output:
        "results/{study}/evaluation/{setting}/{crosscoder}/seed-{seed}.nc",
    log:
        "results/{study}/logs/evaluate/{setting}/{crosscoder}/seed-{seed}.log",
    benchmark:
        "results/{study}/benchmarks/evaluate/{setting}/{crosscoder}/seed-{seed}.tsv"
    conda:
        "../envs/crosscoders.yaml"
    resources:
        mem="2GB",
        runtime="1h",
    params:
        settings=settings_of("evaluate"),
    shell:
        "python -m crosscoders.evaluation --settings {params.settings:q} --crosscoder {input.crosscoder:q}"
        " --activations {input.activations:q} --normalisation {input.normalisation:q} --threads {threads}"
        " --output {output:q} --log {log:q}"


rule classify_latents:
    input:
        crosscoder="results/{study}/crosscoders/{setting}/{crosscoder}/seed-{seed}.nc",
        activations=shards("test"),
        normalisation="results/{study}/activations/{setting}/normalisation.nc",
        tokens="results/{study}/tokens/{setting}/test.nc",
        code=code("latents"),
    output:
        "results/{study}/latents/{setting}/{crosscoder}/seed-{seed}.nc",
    log:
        "results/{study}/logs/classify_latents/{setting}/{crosscoder}/seed-{seed}.log",
    benchmark:
        "results/{study}/benchmarks/classify_latents/{setting}/{crosscoder}/seed-{seed}.tsv"
    conda:
        "../envs/crosscoders.yaml"
    resources:
        mem="3GB",
        runtime="2h",
    params:
        settings=settings_of("classify_latents"),
    shell:
        "python -m crosscoders.latents --settings {params.settings:q} --crosscoder {input.crosscoder:q}"
        " --activations {input.activations:q} --normalisation {input.normalisation:q} --tokens {input.tokens:q}"
        " --threads {threads} --output {output:q} --log {log:q}"
