"""Heads of trained models: weights alone, without data or training."""

from collapsekit.heads._inspect import Inspection as Inspection
from collapsekit.heads._inspect import inspect_head as inspect_head
from collapsekit.heads.activations import Activation as Activation
