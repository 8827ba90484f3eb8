"""Label selectors of the Kubernetes API, as values that can be compared.

Two selectors that mean the same by the same words are equal, whatever the order of their terms, so that
they share what is made for them. apimachinery's LabelSelector: all terms must hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_IN, _NOT_IN, _EXISTS, _ABSENT = "In", "NotIn", "Exists", "DoesNotExist"


@dataclass(frozen=True, slots=True, order=True)
class Term:
    """One condition on a label; `values` matter for In and NotIn."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Tell whether the labels fulfil it; an operator that nobody knows is fulfilled by none."""
        found = labels.get(self.key)
        if self.operator == _IN:
            return found in self.values if found is not None else False
        if self.operator == _NOT_IN:
            # An object without the label is none of these values'.
            return found is None or found not in self.values
        if self.operator == _EXISTS:
            return found is not None
        return self.operator == _ABSENT and found is None


@dataclass(frozen=True, slots=True)
class Selector:
    """All terms must hold; one without terms selects everything."""

    terms: tuple[Term, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Tell whether it selects an object with these labels."""
        return all(term.holds(labels) for term in self.terms)

    def __str__(self) -> str:
        """Return it as people write it."""
        return ", ".join(map(_show, self.terms)) or "all"


EVERYTHING = Selector()


def parse_selector(raw: dict[str, Any] | None) -> Selector | None:
    """Return a selector; None for one that is not there, which is not the same as one that selects all."""
    if raw is None:
        return None
    return Selector(tuple(sorted(set(_parse_terms(raw)))))


def _parse_terms(raw: dict[str, Any]) -> Iterator[Term]:
    for key, value in (raw.get("matchLabels") or {}).items():
        yield Term(key, _IN, (value,))
    for each in raw.get("matchExpressions") or ():
        values = tuple(sorted(set(each.get("values") or ())))
        yield Term(each.get("key") or "", each.get("operator") or "", values)


def _show(term: Term) -> str:
    if term.operator == _IN and len(term.values) == 1:
        return f"{term.key}={term.values[0]}"
    if term.operator in {_IN, _NOT_IN}:
        return f"{term.key} {term.operator} {' '.join(term.values)}"
    return term.key if term.operator == _EXISTS else f"!{term.key}"
