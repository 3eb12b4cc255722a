# A study of crosscoders, from models and text to figures. The study is config.yaml, or the file(s) given with
# --configfile; everything it makes lies in results/{study}/.
from snakemake.utils import min_version

min_version("9.27")


include: "rules/common.smk"
include: "rules/inputs.smk"


container: IMAGE


envvars:
    *ENDPOINT_VARIABLES,


report: "report/workflow.rst"


wildcard_constraints:
    study=STUDY.study,
    setting="|".join(STUDY.settings),
    crosscoder="|".join(STUDY.crosscoders),
    corpus="|".join(STUDY.corpora),
    aligned="|".join(STUDY.aligned),
    notebook="|".join(sorted({STUDY.settings[name].notebook for name in comparisons.drawn_settings(STUDY)})),
    split="train|validation|test",
    shard=r"\d{3}",
    segment=r"\d{4}",
    seed=r"\d+",


include: "rules/data.smk"
include: "rules/activations.smk"
include: "rules/crosscoders.smk"
include: "rules/validation.smk"
include: "rules/planted.smk"
include: "rules/report.smk"


localrules:
    all,


rule all:
    default_target: True
    input:
        f"{RESULTS}/manifest.json",
        f"{RESULTS}/report.html",


onstart:
    try:
        jobs.claim(RESULTS)
        slurm.begin(workflow)
    except UserError as error:
        sys.exit("\n".join(f"error: {line}" for line in str(error).splitlines()))
    for line in [*measurements.left_out(STUDY), *trainings.unequal_budgets(STUDY), *surroundings.missing(STUDY)]:
        print(f"warning: {line}")


onsuccess:
    print(f"\nstart here: {RESULTS}/index.html\nreport:     {RESULTS}/report.html\nfigures:    {RESULTS}/figures/")
