"""Numerical optima with certificates, for what has no closed form; knows nothing of collapsekit.theory."""

from collapsekit.solver._certify import Certificate as Certificate
from collapsekit.solver._certify import certify as certify
from collapsekit.solver._landscape import Landscape as Landscape
from collapsekit.solver._landscape import landscape as landscape
from collapsekit.solver._solve import solve as solve
from collapsekit.solver.progress import Status as Status
from collapsekit.solver.solution import Solution as Solution
