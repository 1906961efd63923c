"""Closed forms: what a last layer converges to, and where classes die."""

from collapsekit.theory._closed_form import Frame as Frame
from collapsekit.theory._closed_form import NoClosedForm as NoClosedForm
from collapsekit.theory._closed_form import closed_form as closed_form
from collapsekit.theory._closed_form import headroom_of as headroom_of
from collapsekit.theory._counts import CountRange as CountRange
from collapsekit.theory._counts import count_range as count_range
from collapsekit.theory._counts import counts_for as counts_for
from collapsekit.theory._inverse import LargestPenalty as LargestPenalty
from collapsekit.theory._inverse import WeightAdvice as WeightAdvice
from collapsekit.theory._inverse import largest_penalty as largest_penalty
from collapsekit.theory._inverse import margins_for as margins_for
from collapsekit.theory._inverse import weights_for as weights_for
from collapsekit.theory._rates import growth_rates as growth_rates
from collapsekit.theory._simplex import Simplex as Simplex
from collapsekit.theory._thresholds import Thresholds as Thresholds
from collapsekit.theory._thresholds import thresholds as thresholds
from collapsekit.theory.references import Nearness as Nearness
from collapsekit.theory.references import balanced_without_relu as balanced_without_relu
from collapsekit.theory.references import deep_linear_mse as deep_linear_mse
from collapsekit.theory.references import layer_peeled_critical_ratio as layer_peeled_critical_ratio
from collapsekit.theory.references import max_margin_frame as max_margin_frame
from collapsekit.theory.references import merging_threshold as merging_threshold
from collapsekit.theory.references import nearest_reference as nearest_reference
from collapsekit.theory.references import orthogonal_frame as orthogonal_frame
from collapsekit.theory.references import seli as seli
from collapsekit.theory.references import simplex_etf as simplex_etf
