"""Training recipes: the one place that turns what a step minimises into a problem (UFM), or says why not."""

from collapsekit.recipe._base import LastLayer as LastLayer
from collapsekit.recipe._base import Recipe as Recipe
from collapsekit.recipe._kinds import BatchNorm as BatchNorm
from collapsekit.recipe._kinds import Penalty as Penalty
from collapsekit.recipe._kinds import Plain as Plain
from collapsekit.recipe._optimizer import Optimizer as Optimizer
from collapsekit.recipe._optimizer import horizon_sentence as horizon_sentence
