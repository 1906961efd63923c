"""What is expected of each class before training; alone knows both the theory and the solver."""

from collapsekit.prediction._phase import PhaseDiagram as PhaseDiagram
from collapsekit.prediction._phase import phase_diagram as phase_diagram
from collapsekit.prediction._fates import Fate as Fate
from collapsekit.prediction._fates import fates as fates

from collapsekit.theory._closed_form import GeneralOrthogonalFrame as Prediction  # INTERIM
from_solution = None  # INTERIM
GOF = Prediction
GOF.collapses = property(lambda self: self.collapsed)  # INTERIM
from collapsekit.theory import predict  # INTERIM
