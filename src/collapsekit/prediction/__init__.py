"""What is expected of each class before training; alone knows both the theory and the solver."""

from collapsekit.prediction._advise import Advice as Advice
from collapsekit.prediction._advise import Remedy as Remedy
from collapsekit.prediction._advise import advise as advise
from collapsekit.prediction._advise import largest_decays as largest_decays
from collapsekit.prediction._fates import fates as fates
from collapsekit.prediction._phase import PhaseDiagram as PhaseDiagram
from collapsekit.prediction._phase import phase_diagram as phase_diagram
from collapsekit.prediction._predict import predict as predict
from collapsekit.prediction._prediction import Basis as Basis
from collapsekit.prediction._prediction import Prediction as Prediction
from collapsekit.prediction._prediction import from_solution as from_solution
