# A study of crosscoders, from models and text to figures. The study is config.yaml, or the file(s) given with
# --configfile; everything it makes lies in results/{study}/.
from snakemake.utils import min_version

min_version("9.27")


include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/activations.smk"
include: "rules/crosscoders.smk"
include: "rules/report.smk"


localrules:
    all,


rule all:
    default_target: True
    input:
        f"results/{STUDY.study}/manifest.json",
        f"results/{STUDY.study}/report.html",


onsuccess:
    print(
        f"\nreport:  results/{STUDY.study}/report.html\nfigures: results/{STUDY.study}/figures/"
    )
