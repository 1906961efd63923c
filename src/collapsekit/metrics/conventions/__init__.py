"""Neural-collapse metrics as single papers and scripts define them: one function a definition, its convention named.

Papers that print one name mean different numbers by it; `docs/conventions.md` says which paper means which, and which
of them can be read under class imbalance. What the toolkit itself reports is in `collapsekit.metrics.functional`.
"""

from collapsekit.metrics.conventions._frames import alignment as alignment
from collapsekit.metrics.conventions._frames import bias_residual as bias_residual
from collapsekit.metrics.conventions._frames import duality_direct as duality_direct
from collapsekit.metrics.conventions._frames import duality_generalised as duality_generalised
from collapsekit.metrics.conventions._frames import equiangularity as equiangularity
from collapsekit.metrics.conventions._frames import equinorm as equinorm
from collapsekit.metrics.conventions._frames import etf_error as etf_error
from collapsekit.metrics.conventions._frames import structure_error as structure_error
from collapsekit.metrics.conventions._ranks import effective_rank as effective_rank
from collapsekit.metrics.conventions._ranks import nc0 as nc0
from collapsekit.metrics.conventions._ranks import singular_values as singular_values
from collapsekit.metrics.conventions._ranks import stable_rank as stable_rank
from collapsekit.metrics.conventions._reading import Reading as Reading
from collapsekit.metrics.conventions._reading import means_about as means_about
from collapsekit.metrics.conventions._samples import Interval as Interval
from collapsekit.metrics.conventions._samples import bootstrap as bootstrap
from collapsekit.metrics.conventions._samples import nc4 as nc4
from collapsekit.metrics.conventions._samples import nc5 as nc5
from collapsekit.metrics.conventions._samples import neco as neco
from collapsekit.metrics.conventions._table import readings as readings
from collapsekit.metrics.conventions._uniformity import uniformity as uniformity
from collapsekit.metrics.conventions._uniformity import uniformity_variance as uniformity_variance
from collapsekit.metrics.conventions._variability import cdnv_corrected as cdnv_corrected
from collapsekit.metrics.conventions._variability import cdnv_directional as cdnv_directional
from collapsekit.metrics.conventions._variability import cdnv_pooled as cdnv_pooled
from collapsekit.metrics.conventions._variability import nc1_by_class as nc1_by_class
from collapsekit.metrics.conventions._variability import trace_ratio as trace_ratio
