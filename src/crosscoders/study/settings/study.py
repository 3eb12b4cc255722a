"""A complete study."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from crosscoders.study.settings.analysis import Behaviours, Classification, Page
from crosscoders.study.settings.base import Name, Section, Seed, Share
from crosscoders.study.settings.comparisons import AnySetting
from crosscoders.study.settings.corpora import AnyTemplate, Corpus
from crosscoders.study.settings.crosscoders import AlignedSettings, AnyCrosscoder
from crosscoders.study.settings.models import Model


class Study(Section):
    """A complete study."""

    study: Name
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seeds: list[Seed] = Field(min_length=1)
    models: dict[Name, Model] = {}
    corpora: dict[Name, Corpus] = {}
    chat_template: AnyTemplate | None = None
    splits: dict[Literal["fine_tune", "train", "validation", "test"], list[Share]] = {}
    """Half-open ranges of a hash of the document's name, so that splits never share a document."""
    settings: dict[Name, AnySetting] = Field(min_length=1)
    crosscoders: dict[Name, AnyCrosscoder]
    aligned: dict[Name, AlignedSettings] = {}
    classification: Classification
    behaviours: Behaviours | None = None
    page: Page | None = None
