"""Closed forms: what a last layer converges to, and where classes die."""

from collapsekit.theory.closed_form import GeneralOrthogonalFrame as GeneralOrthogonalFrame
from collapsekit.theory.closed_form import Thresholds as Thresholds
from collapsekit.theory.closed_form import predict as predict
from collapsekit.theory.closed_form import thresholds as thresholds
from collapsekit.theory.scope import Scope as Scope
from collapsekit.theory.scope import scope as scope
