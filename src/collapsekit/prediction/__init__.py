"""What is expected of each class before training; alone knows both the theory and the solver."""

from collapsekit.prediction._phase import PhaseDiagram as PhaseDiagram
from collapsekit.prediction._phase import phase_diagram as phase_diagram
