"""What all settings share: strict types, unknown keys refused, and the kinds of values that many of them have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

LARGEST = 10**12
"""Above every size and factor that means something; far below what overflows float32."""


def distinct(values: list) -> list:
    """The list, if no entry stands in it twice."""
    twice = sorted({str(value) for value in values if values.count(value) > 1})
    if twice:
        raise PydanticCustomError("refused", "{expected}", {"expected": f"each once; {twice[0]!r} is there twice"})
    return values


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=80)]
Names = Annotated[list[Name], AfterValidator(distinct)]
Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=LARGEST, allow_inf_nan=False)]
Coefficient = Annotated[float, Field(ge=0, le=LARGEST, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0, le=LARGEST)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Package = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$", max_length=200)]
"""Name of a package, as PEP 508 defines it."""
Version = Annotated[
    str,
    Field(
        pattern=r"^(\d+!)?\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[a-z0-9]+(\.[a-z0-9]+)*)?$", max_length=80
    ),
]
"""Version of a package, in the canonical form of PEP 440."""
Repository = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$", max_length=200)]
"""Id of a model or dataset of the hub."""
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Rule:
    """What several fields of a section must fulfil together.

    Attributes
    ----------
    field : str
        The field that an error names, with dots where it lies in a part of the section.
    holds : function of the section
        Whether the rule is fulfilled.
    expected : str
        What the error says was expected; `{names}` of the section's fields are filled in.
    """

    field: str
    holds: Callable[[Any], bool]
    expected: str

    def line(self, section: Section) -> str:
        """The error, without the place of the section."""
        value = attrgetter(self.field)(section)
        return f"{self.field}: {value!r}; expected {self.expected.format_map(dict(section))}"


class Section(BaseModel):
    """Base of all settings: strict types, unknown keys refused, never changed after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    RULES: ClassVar[tuple[Rule, ...]] = ()
    """Rules over several fields, beside the fields that they concern."""

    @model_validator(mode="after")
    def _keep_rules(self) -> Section:
        lines = [rule.line(self) for rule in self.RULES if not rule.holds(self)]
        if lines:
            raise PydanticCustomError("rules", "{lines}", {"lines": lines})
        return self
