"""Numerical optima with certificates, for what has no closed form; knows nothing of collapsekit.theory."""

from collapsekit.solver.certificate import Certificate as Certificate
from collapsekit.solver.certificate import certify as certify
from collapsekit.solver.landscapes import Landscape as Landscape
from collapsekit.solver.landscapes import landscape as landscape
from collapsekit.solver.search import Solution as Solution
from collapsekit.solver.search import solve as solve
