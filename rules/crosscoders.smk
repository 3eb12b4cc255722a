# Training, evaluation and classification of every crosscoder and seed.
# Needs: activations/{setting}/, tokens/{setting}/test.nc
# Gives: crosscoders/, evaluation/, latents/, stability/ and traces/ at {setting}/{crosscoder}/seed-{seed}.nc, and
# detection/{setting}/seed-{seed}.nc of what a series repeats


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
    wildcard_constraints:
        setting="|".join(WHOLE) or "none",
        crosscoder=OF_THIS_STUDY,
    priority: 5  # long jobs start first; jobs that need their results are short and fill the gaps
    conda:
        "../envs/crosscoders.yaml"
    threads: threads_of(STUDY.crosscoders)
    resources:
        **asks("train_crosscoder"),
        gpu=lambda wildcards: GPU * processes_of(STUDY.crosscoders)(wildcards),
    params:
        settings=settings_of("train_crosscoder"),
    shell:
        "python -m crosscoders training.train_crosscoder --settings {params.settings:q} --activations {input.activations:q}"
        " --validation {input.validation:q} --normalisation {input.normalisation:q} --threads {threads}"
        " --output {output.crosscoder:q} --history {output.history:q} --log {log:q}"


rule train_segment:
    input:
        activations=segment_shard,
        previous=state_before,
        normalisation=normalisation,
        code=code("training.train_segment"),
    output:
        state=temp("results/{study}/segments/{setting}/{crosscoder}/seed-{seed}/{segment}.checkpoint"),
        done="results/{study}/segments/{setting}/{crosscoder}/seed-{seed}/{segment}.json",
    log:
        "results/{study}/logs/train_segment/{setting}/{crosscoder}/seed-{seed}/{segment}.log",
    benchmark:
        "results/{study}/benchmarks/train_segment/{setting}/{crosscoder}/seed-{seed}/{segment}.tsv"
    wildcard_constraints:
        setting="|".join(WINDOWED) or "none",
        crosscoder=OF_THIS_STUDY,
    priority: 9  # above extraction, so that shards are read and deleted
    conda:
        "../envs/crosscoders.yaml"
    threads: threads_of(STUDY.crosscoders)
    resources:
        **asks("train_segment"),
        gpu=lambda wildcards: GPU * processes_of(STUDY.crosscoders)(wildcards),
    params:
        settings=settings_of("train_segment"),
        previous=lambda wildcards, input: f"--previous {input.previous}" if input.previous else "",
    shell:
        "python -m crosscoders training.train_segment --settings {params.settings:q} --activations {input.activations:q}"
        " --normalisation {input.normalisation:q} {params.previous} --threads {threads}"
        " --output {output.state:q} --done {output.done:q} --log {log:q}"


rule finish_training:
    input:
        state=last_state,
        validation=shards("validation"),
        normalisation=normalisation,
        code=code("training.finish_training"),
    output:
        crosscoder="results/{study}/crosscoders/{setting}/{crosscoder}/seed-{seed}.nc",
        history="results/{study}/crosscoders/{setting}/{crosscoder}/seed-{seed}.history.nc",
    log:
        "results/{study}/logs/finish_training/{setting}/{crosscoder}/seed-{seed}.log",
    benchmark:
        "results/{study}/benchmarks/finish_training/{setting}/{crosscoder}/seed-{seed}.tsv"
    wildcard_constraints:
        setting="|".join(WINDOWED) or "none",
        crosscoder=OF_THIS_STUDY,
    priority: 9
    conda:
        "../envs/crosscoders.yaml"
    threads: 1
    resources:
        **asks("finish_training"),
        gpu=GPU,
    params:
        settings=settings_of("finish_training"),
    shell:
        "python -m crosscoders training.finish_training --settings {params.settings:q} --state {input.state:q}"
        " --validation {input.validation:q} --normalisation {input.normalisation:q} --threads {threads}"
        " --output {output.crosscoder:q} --history {output.history:q} --log {log:q}"


rule import_crosscoder:
    input:
        published=published_files,
        validation=shards("validation"),
        normalisation="results/{study}/activations/{setting}/normalisation.nc",
        code=code("analysis.import_crosscoder"),
    output:
        crosscoder="results/{study}/crosscoders/{setting}/{crosscoder}/seed-{seed}.nc",
        normalisation="results/{study}/crosscoders/{setting}/{crosscoder}/seed-{seed}.normalisation.nc",
    log:
        "results/{study}/logs/import_crosscoder/{setting}/{crosscoder}/seed-{seed}.log",
    benchmark:
        "results/{study}/benchmarks/import_crosscoder/{setting}/{crosscoder}/seed-{seed}.tsv"
    wildcard_constraints:
        crosscoder="|".join(PUBLISHED) or "none",
    priority: 5
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("import_crosscoder"),
    params:
        settings=settings_of("import_crosscoder"),
    shell:
        "python -m crosscoders analysis.import_crosscoder --settings {params.settings:q} --validation {input.validation:q}"
        " --normalisation {input.normalisation:q} --threads {threads}"
        " --output {output.crosscoder:q} --units {output.normalisation:q} --log {log:q}"


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
        **asks("evaluate"),
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
        **asks("classify_latents"),
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
        **asks("match_seeds"),
    params:
        settings=settings_of("match_seeds"),
    shell:
        "python -m crosscoders analysis.match_seeds --settings {params.settings:q} --crosscoders {input.crosscoders:q}"
        " --latents {input.latents:q} --threads {threads} --output {output:q} --log {log:q}"


rule trace_latents:
    input:
        crosscoder="results/{study}/crosscoders/{setting}/{crosscoder}/seed-{seed}.nc",
        latents="results/{study}/latents/{setting}/{crosscoder}/seed-{seed}.nc",
        code=code("analysis.trace_latents"),
    output:
        "results/{study}/traces/{setting}/{crosscoder}/seed-{seed}.nc",
    log:
        "results/{study}/logs/trace_latents/{setting}/{crosscoder}/seed-{seed}.log",
    benchmark:
        "results/{study}/benchmarks/trace_latents/{setting}/{crosscoder}/seed-{seed}.tsv"
    priority: 1
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("trace_latents"),
    params:
        settings=settings_of("trace_latents"),
    shell:
        "python -m crosscoders analysis.trace_latents --settings {params.settings:q} --crosscoder {input.crosscoder:q}"
        " --latents {input.latents:q} --output {output:q} --log {log:q}"


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
    threads: threads_of(STUDY.aligned)
    resources:
        **asks("train_aligned"),
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
        **asks("evaluate_aligned"),
    params:
        settings=settings_of("evaluate_aligned"),
    shell:
        "python -m crosscoders analysis.evaluate_aligned --settings {params.settings:q} --aligned {input.aligned:q}"
        " --activations {input.activations:q} --normalisation {input.normalisation:q} --threads {threads}"
        " --output {output:q} --log {log:q}"


rule detect_planted:
    input:
        crosscoders=of_seed,
        activations=shards("test"),
        validation=shards("validation"),
        normalisation="results/{study}/activations/{setting}/normalisation.nc",
        tokens=test_tokens,
        models=snapshots,
        code=code("analysis.detect_planted"),
    output:
        "results/{study}/detection/{setting}/seed-{seed}.nc",
    log:
        "results/{study}/logs/detect_planted/{setting}/seed-{seed}.log",
    benchmark:
        "results/{study}/benchmarks/detect_planted/{setting}/seed-{seed}.tsv"
    wildcard_constraints:
        setting="|".join(REPEATED) or "none",
    priority: 6  # a repetition ends before another begins
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("detect_planted"),
        gpu=GPU,
    params:
        settings=settings_of("detect_planted"),
    shell:
        "python -m crosscoders analysis.detect_planted --settings {params.settings:q} --crosscoders {input.crosscoders:q}"
        " --activations {input.activations:q} --validation {input.validation:q} --normalisation {input.normalisation:q}"
        " --tokens {input.tokens:q} --models {input.models:q} --threads {threads} --output {output:q} --log {log:q}"
