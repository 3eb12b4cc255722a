"""What the stages of this room get of a study."""

from __future__ import annotations

from typing import ClassVar, Literal

from crosscoders.study.queries.lineage import contrast_model, own_tokenizers, root_models, setting_corpora
from crosscoders.study.queries.trainings import windowed
from crosscoders.study.settings.base import Count, Name, Share
from crosscoders.study.settings.corpora import AnyTemplate, Corpus
from crosscoders.study.settings.study import Study
from crosscoders.study.stage_section import StageSection


class FetchTextSection(StageSection):
    """One corpus."""

    stage: ClassVar[str] = "fetch_text"
    name: Name
    corpus: Corpus

    @classmethod
    def of(cls, study: Study, corpus: str) -> FetchTextSection:
        """The section of one job."""
        return cls(study=study.study, name=corpus, corpus=study.corpora[corpus])


class TokenizeSection(StageSection):
    """The tokens of one setting, all splits."""

    stage: ClassVar[str] = "tokenize"
    setting_name: Name
    tokens: dict[str, dict[Name, int]]
    """Tokens of each corpus, by split."""
    context: Count
    corpora: list[Name]
    chat_template: AnyTemplate
    splits: dict[str, list[Share]]
    control_tokens: Literal["text", "tokens"]
    roots: list[Name]
    """Models whose tokenizers serve those of the setting."""
    reference: Name
    """The model whose tokens the study counts and shows."""
    own_tokenizers: dict[Name, Name]
    """Models that read text through a tokenizer that is not the reference's, and the roots that it comes from."""
    mixed: tuple[str, ...] = ()
    """Splits in which the documents of all corpora are mixed, so that every shard is a sample of them; in others the
    corpora follow each other."""

    @classmethod
    def of(cls, study: Study, setting: str) -> TokenizeSection:
        """The section of one job."""
        chosen = study.settings[setting]
        return cls(
            study=study.study,
            setting_name=setting,
            tokens=chosen.tokens,
            context=chosen.context,
            corpora=setting_corpora(study, setting),
            chat_template=study.chat_template,
            splits={name: study.splits[name] for name in chosen.tokens},
            control_tokens=chosen.control_tokens,
            reference=contrast_model(chosen),
            roots=root_models(study, setting),
            own_tokenizers=own_tokenizers(study, setting),
            mixed=("train",) if windowed(study, setting) else (),
        )
