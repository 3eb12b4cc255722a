# What latents do: the chat model's own answers, causal patching on them, steering, the effects of shared latents in both models,
# circuits, pages that show latents, and labels. Also how far the models of a pair lie apart.
# Needs: models/, text/, tokens/{setting}/test.nc, crosscoders/, latents/, activations/{setting}/
# Gives: responses/{setting}.nc, divergence/{setting}.nc; causal/, steering/, effects/, circuits/, explanations/ and latents/ at
#        {setting}/{crosscoder}/seed-{seed}.nc and .html


rule measure_divergence:
    input:
        models=contrast_snapshots,
        tokens="results/{study}/tokens/{setting}/test.nc",
        code=code("analysis.measure_divergence"),
    output:
        "results/{study}/divergence/{setting}.nc",
    log:
        "results/{study}/logs/measure_divergence/{setting}.log",
    benchmark:
        "results/{study}/benchmarks/measure_divergence/{setting}.tsv"
    priority: 1
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("measure_divergence"),
        gpu=GPU,
    params:
        settings=settings_of("measure_divergence"),
    shell:
        "python -m crosscoders analysis.measure_divergence --settings {params.settings:q} --tokens {input.tokens:q}"
        " --models {input.models:q} --threads {threads} --output {output:q} --log {log:q}"


rule generate_responses:
    input:
        model=chat_snapshot,
        texts=texts,
        code=code("interventions.generate_responses"),
    output:
        "results/{study}/responses/{setting}.nc",
    log:
        "results/{study}/logs/generate_responses/{setting}.log",
    benchmark:
        "results/{study}/benchmarks/generate_responses/{setting}.tsv"
    priority: 4
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("generate_responses"),
        gpu=GPU,
    params:
        settings=settings_of("generate_responses"),
    shell:
        "python -m crosscoders interventions.generate_responses --settings {params.settings:q} --model {input.model:q} --texts {input.texts:q}"
        " --threads {threads} --output {output:q} --log {log:q}"


rule causal:
    input:
        crosscoder="results/{study}/crosscoders/{setting}/{crosscoder}/seed-{seed}.nc",
        latents="results/{study}/latents/{setting}/{crosscoder}/seed-{seed}.nc",
        responses="results/{study}/responses/{setting}.nc",
        activations=shards("validation"),
        normalisation=normalisation,
        models=snapshots,
        code=code("interventions.causal"),
    output:
        "results/{study}/causal/{setting}/{crosscoder}/seed-{seed}.nc",
    log:
        "results/{study}/logs/causal/{setting}/{crosscoder}/seed-{seed}.log",
    benchmark:
        "results/{study}/benchmarks/causal/{setting}/{crosscoder}/seed-{seed}.tsv"
    priority: 3  # it takes longer than the other jobs that a notebook waits for
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("causal"),
        gpu=GPU,
    params:
        settings=settings_of("causal"),
    shell:
        "python -m crosscoders interventions.causal --settings {params.settings:q} --crosscoder {input.crosscoder:q}"
        " --latents {input.latents:q} --responses {input.responses:q} --activations {input.activations:q}"
        " --normalisation {input.normalisation:q} --models {input.models:q} --threads {threads}"
        " --output {output:q} --log {log:q}"


rule steer:
    input:
        crosscoder="results/{study}/crosscoders/{setting}/{crosscoder}/seed-{seed}.nc",
        latents="results/{study}/latents/{setting}/{crosscoder}/seed-{seed}.nc",
        activations=shards("validation"),
        normalisation=normalisation,
        articles=planted_articles,
        models=snapshots,
        code=code("interventions.steer"),
    output:
        "results/{study}/steering/{setting}/{crosscoder}/seed-{seed}.nc",
    log:
        "results/{study}/logs/steer/{setting}/{crosscoder}/seed-{seed}.log",
    benchmark:
        "results/{study}/benchmarks/steer/{setting}/{crosscoder}/seed-{seed}.tsv"
    priority: 3  # it takes longer than the other jobs that a notebook waits for
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("steer"),
        gpu=GPU,
    params:
        settings=settings_of("steer"),
    shell:
        "python -m crosscoders interventions.steer --settings {params.settings:q} --crosscoder {input.crosscoder:q}"
        " --latents {input.latents:q} --activations {input.activations:q} --normalisation {input.normalisation:q}"
        " --articles {input.articles:q} --models {input.models:q} --threads {threads} --output {output:q} --log {log:q}"


rule compare_effects:
    input:
        crosscoder="results/{study}/crosscoders/{setting}/{crosscoder}/seed-{seed}.nc",
        latents="results/{study}/latents/{setting}/{crosscoder}/seed-{seed}.nc",
        activations=shards("test"),
        normalisation=normalisation,
        tokens=test_tokens,
        models=snapshots,
        code=code("interventions.compare_effects"),
    output:
        "results/{study}/effects/{setting}/{crosscoder}/seed-{seed}.nc",
    log:
        "results/{study}/logs/compare_effects/{setting}/{crosscoder}/seed-{seed}.log",
    benchmark:
        "results/{study}/benchmarks/compare_effects/{setting}/{crosscoder}/seed-{seed}.tsv"
    priority: 3  # it takes longer than the other jobs that a notebook waits for
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("compare_effects"),
        gpu=GPU,
    params:
        settings=settings_of("compare_effects"),
    shell:
        "python -m crosscoders interventions.compare_effects --settings {params.settings:q} --crosscoder {input.crosscoder:q}"
        " --latents {input.latents:q} --activations {input.activations:q} --normalisation {input.normalisation:q}"
        " --tokens {input.tokens:q} --models {input.models:q} --threads {threads} --output {output:q} --log {log:q}"


rule circuits:
    input:
        crosscoder="results/{study}/crosscoders/{setting}/{crosscoder}/seed-{seed}.nc",
        saes=saes,
        activations=shards("test"),
        normalisation=normalisation,
        tokens=test_tokens,
        model=snapshots,
        code=code("interventions.circuits"),
    output:
        "results/{study}/circuits/{setting}/{crosscoder}/seed-{seed}.nc",
    log:
        "results/{study}/logs/circuits/{setting}/{crosscoder}/seed-{seed}.log",
    benchmark:
        "results/{study}/benchmarks/circuits/{setting}/{crosscoder}/seed-{seed}.tsv"
    wildcard_constraints:
        setting="|".join(sorted(set(STUDY.settings) - set(PLANTED))) or "none",
    priority: 3  # it takes longer than the other jobs that a notebook waits for
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("circuits"),
        gpu=GPU,
    params:
        settings=settings_of("circuits"),
    shell:
        "python -m crosscoders interventions.circuits --settings {params.settings:q} --crosscoder {input.crosscoder:q}"
        " --saes {input.saes:q} --activations {input.activations:q} --normalisation {input.normalisation:q}"
        " --tokens {input.tokens:q} --model {input.model:q} --threads {threads} --output {output:q} --log {log:q}"


rule latent_page:
    # No priority: nothing but the manifest waits for pages, so they fill the gaps while notebooks are drawn.
    input:
        crosscoder="results/{study}/crosscoders/{setting}/{crosscoder}/seed-{seed}.nc",
        latents="results/{study}/latents/{setting}/{crosscoder}/seed-{seed}.nc",
        other_crosscoders=others("crosscoders"),
        other_latents=others("latents"),
        explanations=explained_training,
        activations=shards("test"),
        normalisation=normalisation,
        tokens=test_tokens,
        models=snapshots,
        template=of_project("report/latents.html"),
        code=code("analysis.latent_page"),
    output:
        page="results/{study}/latents/{setting}/{crosscoder}/seed-{seed}.html",
    log:
        "results/{study}/logs/latent_page/{setting}/{crosscoder}/seed-{seed}.log",
    benchmark:
        "results/{study}/benchmarks/latent_page/{setting}/{crosscoder}/seed-{seed}.tsv"
    wildcard_constraints:
        crosscoder="|".join(name for name in STUDY.crosscoders if name not in IN_PARTS) or "none",
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("latent_page"),
    params:
        settings=settings_of("latent_page"),
        optional=lambda wildcards, input, output: " ".join(
            [
                f"--{name} {input[name]}"
                for name in ("other_crosscoders", "other_latents", "explanations")
                if input[name]
            ]
            + ["--parts" for path in [output.get("parts")] if path]
        ),
    shell:
        "python -m crosscoders analysis.latent_page --settings {params.settings:q} --crosscoder {input.crosscoder:q}"
        " --latents {input.latents:q} --activations {input.activations:q} --normalisation {input.normalisation:q}"
        " --tokens {input.tokens:q} --models {input.models:q} --template {input.template:q} --threads {threads}"
        " {params.optional} --output {output.page:q} --log {log:q}"


# A page of many latents lies in one file with the table, and a folder beside it with the details of latents.
use rule latent_page as latent_page_in_parts with:
    output:
        page="results/{study}/latents/{setting}/{crosscoder}/seed-{seed}.html",
        parts=directory("results/{study}/latents/{setting}/{crosscoder}/seed-{seed}"),
    wildcard_constraints:
        crosscoder="|".join(IN_PARTS) or "none",


rule explain_latents:
    input:
        crosscoder="results/{study}/crosscoders/{setting}/{crosscoder}/seed-{seed}.nc",
        latents="results/{study}/latents/{setting}/{crosscoder}/seed-{seed}.nc",
        activations=shards("test"),
        normalisation=normalisation,
        tokens=test_tokens,
        model=labeller,
        code=code("analysis.explain_latents"),
    output:
        "results/{study}/explanations/{setting}/{crosscoder}/seed-{seed}.nc",
    log:
        "results/{study}/logs/explain_latents/{setting}/{crosscoder}/seed-{seed}.log",
    benchmark:
        "results/{study}/benchmarks/explain_latents/{setting}/{crosscoder}/seed-{seed}.tsv"
    wildcard_constraints:
        setting="|".join(measurements.explained(STUDY)) or "none",
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("explain_latents"),
        gpu=lambda wildcards: GPU * bool(labeller(wildcards)),
    params:
        settings=settings_of("explain_latents"),
        model=lambda wildcards, input: f"--model {input.model}" if input.model else "",
    shell:
        "python -m crosscoders analysis.explain_latents --settings {params.settings:q} --crosscoder {input.crosscoder:q}"
        " --latents {input.latents:q} --activations {input.activations:q} --normalisation {input.normalisation:q}"
        " --tokens {input.tokens:q} {params.model} --threads {threads} --output {output:q} --log {log:q}"
