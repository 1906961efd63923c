r"""Losses: value, gradient, and the scalar form φ that the closed forms minimise.

A loss acts on a (K, K) matrix of logits whose row k holds the logits of class k's (collapsed) feature, so that the
target of row k is k. Every loss here is a nondecreasing function of the log-odds of error plus a multiple of the
margin, which is why the geometry of the general orthogonal frame holds for it with the margin that minimises
``φ(s) + q s`` (docs/theory.md); except cross-entropy with offsets, scales or weighted smoothing, which is for the
solver.
"""

from collapsekit.losses.cross_entropy import CrossEntropy as CrossEntropy
from collapsekit.losses.focal import Focal as Focal
from collapsekit.losses.hinge import Hinge as Hinge
from collapsekit.losses.mse import MSE as MSE

Loss = CrossEntropy | Focal | Hinge | MSE
