"""Every class of a network while it trains (needs the `torch` extra)."""

from collapsekit.monitor._monitor import Monitor as Monitor
