"""The sections of all stages by name, as rules fill them."""

from __future__ import annotations

from crosscoders.activations import sections as activations
from crosscoders.analysis import sections as analysis
from crosscoders.data import sections as data
from crosscoders.interventions import sections as interventions
from crosscoders.language_models import sections as language_models
from crosscoders.library import sections as library
from crosscoders.planted import sections as planted
from crosscoders.report import sections as report
from crosscoders.study.settings.study import Study
from crosscoders.study.stage_section import StageSection
from crosscoders.training import sections as training

SECTIONS: dict[str, type[StageSection]] = {
    section.stage: section
    for section in (
        language_models.FetchModelSection,
        data.FetchTextSection,
        language_models.PretrainSection,
        language_models.TakeSnapshotSection,
        language_models.FineTuneSection,
        language_models.PerturbSection,
        language_models.MeasureBehavioursSection,
        data.TokenizeSection,
        activations.ExtractActivationsSection,
        activations.ExtractWindowSection,
        activations.FitNormalisationSection,
        activations.MeasureSimilaritySection,
        activations.MeasureAblationsSection,
        training.TrainCrosscoderSection,
        training.TrainSegmentSection,
        training.FinishTrainingSection,
        training.TrainAlignedSection,
        analysis.ImportCrosscoderSection,
        analysis.EvaluateSection,
        analysis.EvaluateAlignedSection,
        analysis.MeasureDivergenceSection,
        analysis.ClassifyLatentsSection,
        analysis.MatchSeedsSection,
        analysis.TraceLatentsSection,
        analysis.DetectPlantedSection,
        analysis.LatentPageSection,
        analysis.ExplainLatentsSection,
        interventions.GenerateResponsesSection,
        interventions.CausalSection,
        interventions.SteerSection,
        interventions.CompareEffectsSection,
        interventions.CircuitsSection,
        library.ExportSection,
        planted.TrialSection,
        planted.CircuitTrialSection,
        report.CollateSection,
        report.CollateTrialsSection,
        report.SummarisePowerSection,
        report.NotebookSection,
        report.HtmlSection,
        report.ReportSection,
        report.IndexSection,
        report.ManifestSection,
    )
}
"""Stage to the class of its section."""


def section(study: Study, stage: str, **wildcards: str) -> str:
    """The section of a stage as JSON, for the wildcards of one job.

    Parameters
    ----------
    study : Study
    stage : str
        A key of `SECTIONS`.
    wildcards : str
        Names as the stage's section takes them, as `setting` and `seed`.

    Returns
    -------
    str
    """
    return SECTIONS[stage].of(study, **wildcards).to_json()
