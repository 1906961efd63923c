"""Lay a prediction beside a measurement and say, class by class, what became of it (needs the `torch` extra)."""

from collapsekit.diagnosis.findings import ClassFinding as ClassFinding
from collapsekit.diagnosis.findings import Comparison as Comparison
from collapsekit.diagnosis.findings import compare as compare
from collapsekit.diagnosis.scope import Scope as Scope
from collapsekit.diagnosis.scope import scope as scope
