"""Lay a prediction beside a measurement and say, class by class, what became of it (needs the `torch` extra)."""

from collapsekit.diagnosis._adjust import Adjustment as Adjustment
from collapsekit.diagnosis._adjust import Attempt as Attempt
from collapsekit.diagnosis._adjust import adjust as adjust
from collapsekit.diagnosis._certify import NetworkCertificate as NetworkCertificate
from collapsekit.diagnosis._certify import certify_network as certify_network
from collapsekit.diagnosis._compare import ClassFinding as ClassFinding
from collapsekit.diagnosis._compare import Comparison as Comparison
from collapsekit.diagnosis._compare import compare as compare
from collapsekit.diagnosis._diagnose import diagnose as diagnose
from collapsekit.diagnosis._effective import EffectivePenalties as EffectivePenalties
from collapsekit.diagnosis._effective import effective_penalties as effective_penalties
from collapsekit.diagnosis.findings import Finding as Finding
from collapsekit.diagnosis.result import ClassDiagnosis as ClassDiagnosis
from collapsekit.diagnosis.result import Diagnosis as Diagnosis
