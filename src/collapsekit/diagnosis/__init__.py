"""Lay a prediction beside a measurement and say, class by class, what became of it (needs the `torch` extra)."""

from collapsekit.diagnosis.certified import NetworkCertificate as NetworkCertificate
from collapsekit.diagnosis.certified import certify_network as certify_network
from collapsekit.diagnosis.effective import EffectivePenalties as EffectivePenalties
from collapsekit.diagnosis.effective import effective_penalties as effective_penalties
from collapsekit.diagnosis.findings import ClassFinding as ClassFinding
from collapsekit.diagnosis.findings import Comparison as Comparison
from collapsekit.diagnosis.findings import compare as compare
from collapsekit.diagnosis.findings import compare_run as compare_run
from collapsekit.diagnosis.findings import run_scope as run_scope
from collapsekit.diagnosis.table import collect as collect
from collapsekit.diagnosis.table import write_table as write_table
