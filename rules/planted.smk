# Members of the family judged on synthetic sources whose concepts are known.
# Needs: nothing but the settings.
# Gives: planted/ and circuits/ at {setting}/{crosscoder}/seed-{seed}.nc, summary/{setting}.nc


rule trial:
    input:
        code=code("planted.trial"),
    output:
        "results/{study}/planted/{setting}/{crosscoder}/seed-{seed}.nc",
    log:
        "results/{study}/logs/trial/{setting}/{crosscoder}/seed-{seed}.log",
    benchmark:
        "results/{study}/benchmarks/trial/{setting}/{crosscoder}/seed-{seed}.tsv"
    wildcard_constraints:
        setting="|".join(PLANTED) or "none",
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("trial"),
    params:
        settings=settings_of("trial"),
    shell:
        "python -m crosscoders planted.trial --settings {params.settings:q} --threads {threads} --output {output:q} --log {log:q}"


rule circuit_trial:
    input:
        code=code("planted.circuit_trial"),
    output:
        "results/{study}/circuits/{setting}/{crosscoder}/seed-{seed}.nc",
    log:
        "results/{study}/logs/circuit_trial/{setting}/{crosscoder}/seed-{seed}.log",
    benchmark:
        "results/{study}/benchmarks/circuit_trial/{setting}/{crosscoder}/seed-{seed}.tsv"
    wildcard_constraints:
        setting="|".join(PLANTED) or "none",
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("circuit_trial"),
    params:
        settings=settings_of("circuit_trial"),
    shell:
        "python -m crosscoders planted.circuit_trial --settings {params.settings:q} --threads {threads} --output {output:q}"
        " --log {log:q}"


rule collate_trials:
    input:
        trials=over_trainings("planted"),
        circuits=circuits,
        code=code("report.collate_trials"),
    output:
        "results/{study}/summary/{setting}.nc",
    log:
        "results/{study}/logs/collate_trials/{setting}.log",
    benchmark:
        "results/{study}/benchmarks/collate_trials/{setting}.tsv"
    wildcard_constraints:
        setting="|".join(PLANTED) or "none",
    conda:
        "../envs/crosscoders.yaml"
    resources:
        **asks("collate_trials"),
    params:
        settings=settings_of("collate_trials"),
        circuits=lambda wildcards, input: f"--circuits {input.circuits}" if input.circuits else "",
    shell:
        "python -m crosscoders report.collate_trials --settings {params.settings:q} --trials {input.trials:q}"
        " {params.circuits} --output {output:q} --log {log:q}"
