# Summaries, notebooks, figures, exports, report and manifest.
# Needs: latents/, evaluation/ and crosscoders/ of a setting, behaviours/
# Gives: summary/{setting}.nc, summary/findings.html, notebooks/{notebook}-{setting}.ipynb and .html, figures/, exports/,
# index.html, report.html, manifest.json


rule collate:
    input:
        latents=over_trainings("latents"),
        evaluations=over_trainings("evaluation"),
        histories=histories,
        stability=matched,
        aligned=aligned,
        normalisation=normalisation,
        tokens=test_tokens,
        behaviours=behaviours,
        similarity=similarity,
        divergence=divergence,
        causal=patched,
        steering=steered,
        effects=effects,
        traces=traces,
        circuits=circuits,
        explanations=explained,
        code=code("report.collate"),
    output:
        "results/{study}/summary/{setting}.nc",
    log:
        "results/{study}/logs/collate/{setting}.log",
    benchmark:
        "results/{study}/benchmarks/collate/{setting}.tsv"
    wildcard_constraints:
        setting="|".join(sorted(set(STUDY.settings) - {*PLANTED, *SERIES})) or "none",
    priority: 2
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("collate"),
    params:
        settings=settings_of("collate"),
        optional=lambda wildcards, input: " ".join(
            f"--{name} {input[name]}"
            for name in (
                "histories",
                "behaviours",
                "stability",
                "aligned",
                "similarity",
                "divergence",
                "causal",
                "steering",
                "effects",
                "traces",
                "circuits",
                "explanations",
            )
            if input[name]
        ),
    shell:
        "python -m crosscoders report.collate --settings {params.settings:q} --latents {input.latents:q}"
        " --evaluations {input.evaluations:q}"
        " --normalisation {input.normalisation:q} --tokens {input.tokens:q} {params.optional} --output {output:q} --log {log:q}"


rule summarise_power:
    input:
        detections=detections,
        behaviours=shown_behaviours,
        code=code("report.summarise_power"),
    output:
        "results/{study}/summary/{setting}.nc",
    log:
        "results/{study}/logs/summarise_power/{setting}.log",
    benchmark:
        "results/{study}/benchmarks/summarise_power/{setting}.tsv"
    wildcard_constraints:
        setting="|".join(SERIES) or "none",
    priority: 2
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("summarise_power"),
    params:
        settings=settings_of("summarise_power"),
        behaviours=lambda wildcards, input: f"--behaviours {input.behaviours}" if input.behaviours else "",
    shell:
        "python -m crosscoders report.summarise_power --settings {params.settings:q} --detections {input.detections:q}"
        " {params.behaviours} --output {output:q} --log {log:q}"


for setting_name in comparisons.drawn_settings(STUDY):

    # There is one rule per setting, because each notebook draws figures of its own.
    rule:
        name:
            f"notebook_{setting_name.replace('-', '_')}"
        input:
            summary=f"results/{{study}}/summary/{setting_name}.nc",
            nulls=[f"results/{{study}}/summary/{name}.nc" for name in comparisons.nulls_of(STUDY, setting_name)],
            transfers=[f"results/{{study}}/summary/{name}.nc" for name in comparisons.transfers_of(STUDY, setting_name)],
            notebook=of_project(f"notebooks/{STUDY.settings[setting_name].notebook}.ipynb"),
            code=code("report.notebook", "report.results", *registry.modules()),
        output:
            notebook=f"results/{{study}}/notebooks/{STUDY.settings[setting_name].notebook}-{setting_name}.ipynb",
            svg=[
                f"results/{{study}}/figures/{name}.svg"
                for name in registry.expected_figures(STUDY, setting_name).values()
            ],
            png=report(
                [
                    f"results/{{study}}/figures/{name}.png"
                    for name in registry.expected_figures(STUDY, setting_name).values()
                ],
                caption="../report/figure.rst",
                category="figures",
                subcategory=setting_name,
                labels={"setting": setting_name},
            ),
        log:
            f"results/{{study}}/logs/notebook/{setting_name}.log",
        benchmark:
            f"results/{{study}}/benchmarks/notebook/{setting_name}.tsv"
        priority: 2
        conda:
            "../envs/crosscoders.yaml"
        resources:
            **asks("notebook", setting=setting_name),
        params:
            settings=sections.section(STUDY, "notebook", setting=setting_name),
            figures="results/{study}/figures",
            beside=lambda wildcards, input: " ".join(
                f"--{name} {input[name]}" for name in ("nulls", "transfers") if input[name]
            ),
        shell:
            "python -m crosscoders report.notebook --settings {params.settings:q} --summary {input.summary:q} {params.beside}"
            " --notebook {input.notebook:q} --figures {params.figures:q} --output {output.notebook:q} --log {log:q}"


rule html:
    input:
        notebook="results/{study}/notebooks/{notebook}-{setting}.ipynb",
        code=code("report.html"),
    output:
        report(
            "results/{study}/notebooks/{notebook}-{setting}.html",
            caption="../report/notebook.rst",
            category="notebooks",
            labels={"notebook": "{notebook}", "setting": "{setting}"},
        ),
    log:
        "results/{study}/logs/html/{notebook}-{setting}.log",
    benchmark:
        "results/{study}/benchmarks/html/{notebook}-{setting}.tsv"
    priority: 2
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("html"),
    params:
        settings=settings_of("html"),
    shell:
        "python -m crosscoders report.html --settings {params.settings:q} --notebook {input.notebook:q}"
        " --output {output:q} --log {log:q}"


rule report:
    input:
        findings="results/{study}/summary/findings.html",
        description=of_project("report/workflow.rst"),
        pages=[*executed("html"), *pages()],
        code=code("report.report"),
    output:
        "results/{study}/report.html",
    log:
        "results/{study}/logs/report.log",
    benchmark:
        "results/{study}/benchmarks/report.tsv"
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("report"),
    params:
        settings=settings_of("report"),
    shell:
        "python -m crosscoders report.report --settings {params.settings:q} --findings {input.findings:q} --pages {input.pages:q}"
        " --output {output:q} --log {log:q}"


rule index:
    input:
        summaries=summaries(),
        html=executed("html"),  # its pictures and pages are those that the front page shows and names
        pages=pages(),
        template=of_project("report/index.html"),
        findings_template=of_project("report/findings.html"),
        code=code("report.index", *registry.modules()),
    output:
        page="results/{study}/index.html",
        findings="results/{study}/summary/findings.html",
    log:
        "results/{study}/logs/index.log",
    benchmark:
        "results/{study}/benchmarks/index.tsv"
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("index"),
    params:
        settings=settings_of("index"),
    shell:
        "python -m crosscoders report.index --settings {params.settings:q} --summaries {input.summaries:q}"
        " --template {input.template:q} --findings_template {input.findings_template:q}"
        " --output {output.page:q} --findings {output.findings:q} --log {log:q}"


rule export:
    input:
        crosscoder="results/{study}/crosscoders/{setting}/{crosscoder}/seed-{seed}.nc",
        activations=of_documents(shards("test")),
        normalisation=of_documents(normalisation),
        tokens=of_documents(test_tokens),
        models=of_documents(snapshots),
        code=code("library.export"),
    output:
        folder=directory("results/{study}/exports/{setting}/{crosscoder}/seed-{seed}/{format_name}"),
        files="results/{study}/exports/{setting}/{crosscoder}/seed-{seed}/{format_name}.json",
    log:
        "results/{study}/logs/export/{setting}/{crosscoder}/seed-{seed}/{format_name}.log",
    benchmark:
        "results/{study}/benchmarks/export/{setting}/{crosscoder}/seed-{seed}/{format_name}.tsv"
    wildcard_constraints:
        format_name="|".join(sorted({name for *_, name in trainings.exports(STUDY)})) or "none",
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("export"),
    params:
        settings=settings_of("export"),
    shell:
        "python -m crosscoders library.export --settings {params.settings:q} --crosscoder {input.crosscoder:q}"
        " --threads {threads} --folder {output.folder:q} --output {output.files:q} --log {log:q}"


rule manifest:
    input:
        # Every other file of the study is made before one of these.
        index="results/{study}/index.html",
        notebooks=executed("ipynb"),
        html=executed("html"),
        pages=pages(),
        explanations=explanations(),
        exports=exports(),
        report="results/{study}/report.html",
        code=code("report.manifest"),
    output:
        "results/{study}/manifest.json",
    log:
        "results/{study}/logs/manifest.log",
    benchmark:
        "results/{study}/benchmarks/manifest.tsv"
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("manifest"),
    params:
        settings=settings_of("manifest"),
    shell:
        "python -m crosscoders report.manifest --settings {params.settings:q} --output {output:q} --log {log:q}"
